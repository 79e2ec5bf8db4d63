"""The Ray cluster that a client's own process works on."""

from __future__ import annotations

from rayline.errors import needing


class Joining:
    """What joins a cluster before it works. `address` is the cluster's; None starts one in this
    process."""

    def __init__(self, address: str | None) -> None:
        self.address = address

    def _join(self) -> None:
        """Join the cluster, or start one. Raises PlacementError."""
        with needing("train"):
            from rayline.actors import join_ray

        join_ray(self.address)

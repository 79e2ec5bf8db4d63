"""The director as a Serve deployment: one actor, which holds no CPU."""

from __future__ import annotations

import time

from rayline.serving.director.fleet import Fleet, GatewayReport, ReplicaReport, picture
from rayline.spec import GatewaySpec


class Director:
    """Hears replicas and gateways. Made by Ray Serve."""

    def __init__(self, gateway: GatewaySpec) -> None:
        self._gateway = gateway
        self._reports: dict[str, tuple[float, ReplicaReport]] = {}

    async def report(self, report: ReplicaReport) -> None:
        """Called by every replica, once a second."""
        self._reports[report.address.replica] = (time.monotonic(), report)

    async def leave(self, replica: str) -> None:
        """Called by a replica that takes no more requests."""
        self._reports.pop(replica, None)

    async def sync(self, _: GatewayReport) -> Fleet:
        """Called by every gateway, twice a second."""
        return picture(self._reports, time.monotonic())

    async def gateway(self) -> GatewaySpec:
        """Where the cluster's gateway listens, and how."""
        return self._gateway

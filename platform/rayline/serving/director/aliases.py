"""The registered model's alias follows the version that is stable."""

from __future__ import annotations

import ray

from rayline.serving.rollout.version import Version
from rayline.spec import ServeSpec, TrackingSpec


def move_alias_elsewhere(version: Version, spec: ServeSpec) -> None:
    """Move the alias in a process of its own, which ends: MLflow would take more memory in the
    director than all else there. Blocks; raises what tracking raises."""
    registered = version.asked.registered
    if registered is None or registered.alias is None:
        return
    remote = ray.remote(num_cpus=0, max_retries=0)(_move)
    ray.get(
        remote.remote(
            spec.tracking,
            registered.name,
            registered.alias,
            registered.version,
            f"{spec.name} version {version.number}",
        )
    )


def _move(tracking: TrackingSpec, name: str, alias: str, version: int, served_as: str) -> None:
    from rayline.tracking import move_alias

    move_alias(tracking, name, alias, version, served_as=served_as)

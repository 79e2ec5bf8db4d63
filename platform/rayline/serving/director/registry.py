"""The model registry hears which versions are up, and its alias follows the stable one."""

from __future__ import annotations

import ray

from rayline.serving.rollout.version import Version
from rayline.spec import ServeSpec, TrackingSpec
from rayline.tracking import Served


def tell_registry(version: Version, spec: ServeSpec, stable: bool) -> None:
    """Write it down in a process of its own, which ends: MLflow would take more memory in the
    director than all else there. Blocks; raises what tracking raises."""
    registered = version.asked.registered
    if registered is None:
        return
    served = Served(
        name=registered.name,
        version=registered.version,
        served=spec.name,
        number=version.number,
        revision=version.asked.fingerprint,
        alias=registered.alias,
        stable=stable,
    )
    remote = ray.remote(num_cpus=0, max_retries=0)(_tell)
    ray.get(remote.remote(spec.tracking, served))


def _tell(tracking: TrackingSpec, served: Served) -> None:
    from rayline.tracking import record_deployment

    record_deployment(tracking, served)

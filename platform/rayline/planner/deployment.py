"""DeploymentPlan: what a deployment would take, put together from the estimates of this room."""

from __future__ import annotations

from dataclasses import dataclass

from rayline.planner.fitting import Fit, what_fits
from rayline.planner.hardware import gpu_memory_bytes
from rayline.planner.served_model import ServedModel
from rayline.planner.serving import ServingPlan, plan_serving
from rayline.spec import Device, ServeSpec


@dataclass(frozen=True, slots=True)
class DeploymentPlan:
    """What one replica of a deployment would take, and what to change where it does not fit."""

    deployment: ServeSpec
    model: ServedModel
    replica: ServingPlan
    fits: tuple[Fit, ...]
    """Changes with which it fits; empty where it fits as it is."""


def plan_deployment(
    deployment: ServeSpec,
    model: ServedModel,
    *,
    host_bytes: int | None = None,
    draft: ServedModel | None = None,
) -> DeploymentPlan:
    """The plan of `deployment`. `host_bytes` is the memory of a node, for CPU; a GPU's is that of
    engine.gpu. `draft` is speculation.model.

    Called on the driver. Raises SpecError where it cannot work.
    """
    engine = deployment.engine
    device = planned_device(deployment)
    engine.check_device(device)
    memory = host_bytes
    if device == "gpu":
        memory = None if engine.gpu is None else gpu_memory_bytes(engine.gpu)
    replica = plan_serving(engine, model, device, memory, draft)
    wanted = replica.known and not replica.fits
    fits = what_fits(engine, model, device, memory, draft) if wanted else []
    return DeploymentPlan(deployment, model, replica, tuple(fits))


def planned_device(deployment: ServeSpec) -> Device:
    """What a plan is made for where no cluster is asked: GPUs where the spec says so or names a
    kind of them."""
    if deployment.device != "auto":
        return deployment.device
    return "cpu" if deployment.engine.gpu is None else "gpu"

"""The planner's picture of a run's plan: its timeline, and the memory of each worker, as SVG."""

from __future__ import annotations

import json

from rayline.errors import SpecError
from rayline.planner.accelerators import ACCELERATORS, Accelerator, find_accelerator
from rayline.planner.calibration_file import best_calibration
from rayline.planner.columns import Machines
from rayline.planner.picture import draw_job
from rayline.planner.request import known_shape
from rayline.spec import JobSpec


def plan_svg(job: JobSpec, plan_file: str | None, nodes: int | None) -> str:
    """The picture of the plan that `job` ran under. `plan_file` is the run's plan.json, where the
    planner chose; `nodes` is how many its gang stood on, where that is known. Raises SpecError
    where the run does not say enough."""
    if job.plan.auto:
        raise SpecError("plan", "it had not been chosen yet", value="auto")
    kind = _accelerator(job, plan_file)
    workers = job.plan.world_size
    shape = known_shape(job.model)
    if shape is None:
        raise SpecError(
            "model",
            "its config is not on this machine, so its memory is not known",
            value=str(job.model),
        )
    each = -(-workers // nodes) if nodes else 0
    return draw_job(job, shape, Machines(kind, workers, each), best_calibration().curves)


def _accelerator(job: JobSpec, plan_file: str | None) -> Accelerator:
    if plan_file is not None:
        return find_accelerator(str(json.loads(plan_file)["gpu_type"]))
    if job.resources.device == "cpu":
        return ACCELERATORS["CPU"]
    raise SpecError(
        "resources",
        "the run does not say on which kind of GPU it ran",
        fix="rayline plan SPEC --gpus N --gpu-type KIND --picture plan.html draws it for one",
    )

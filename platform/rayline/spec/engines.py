"""What each engine can do: a job that asks for more is refused, with what the other one offers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rayline.spec.job import JobSpec


def why_engine_cannot(job: JobSpec) -> str | None:
    """The first thing in the job that its engine can't do, and what to do; None where it can."""
    reasons = _deepspeed_lacks(job) if job.engine == "deepspeed" else _native_lacks(job)
    return next(reasons, None)


def _deepspeed_lacks(job: JobSpec) -> Iterator[str]:
    plan = job.plan
    if plan.tensor * plan.pipeline * plan.context > 1:
        yield (
            "engine deepspeed splits along plan.data only; for tensor, pipeline or context use "
            "engine: native"
        )
    if job.precision == "fp16":
        yield "engine deepspeed knows no precision fp16; use engine: native"
    if job.ema is not None or job.recompute != "none":
        yield "engine deepspeed knows no ema or recompute; use engine: native"
    if job.optim.kind != "adamw" or job.optim.groups:
        yield (
            "engine deepspeed knows optim.kind adamw without optim.groups; for "
            f"{job.optim.kind} or groups use engine: native"
        )
    yield from _deepspeed_offload_lacks(job)


def _deepspeed_offload_lacks(job: JobSpec) -> Iterator[str]:
    """DeepSpeed's own rules (runtime/zero/offload_config.py)."""
    stage, offload = job.plan.zero_stage, job.offload
    if offload.optimizer != "none" and stage == 0:
        yield (
            f"offload.optimizer {offload.optimizer} moves what ZeRO shards, and plan.zero_stage 0 "
            "shards nothing; use plan.zero_stage 1, 2 or 3"
        )
    if offload.optimizer == "nvme" and stage < 3:
        yield (
            f"offload.optimizer nvme needs plan.zero_stage 3, found {stage}; use "
            "offload.optimizer: cpu, or plan.zero_stage: 3"
        )
    if offload.parameters != "none" and stage < 3:
        yield (
            f"offload.parameters {offload.parameters} needs plan.zero_stage 3, found {stage}: "
            "other stages keep whole weights; use offload.parameters: none, or plan.zero_stage: 3"
        )


def _native_lacks(job: JobSpec) -> Iterator[str]:
    for name in ("optimizer", "parameters"):
        place = getattr(job.offload, name)
        if place != "none":
            yield f"engine native offloads no {name}; use engine: deepspeed"

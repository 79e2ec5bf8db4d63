"""JobPlan: what a job would run, put together from the estimates of this room."""

from __future__ import annotations

from dataclasses import dataclass

from rayline.planner.memory import MemoryEstimate, estimate_memory
from rayline.planner.parameters import count_parameters
from rayline.planner.pipeline import PipelineEstimate, estimate_pipeline
from rayline.spec import Coordinate, JobSpec, ModelShape


@dataclass(frozen=True, slots=True)
class JobPlan:
    """What a job would run, where, and how much memory it would take."""

    job: JobSpec
    model: ModelShape
    parameters: int
    """Parameters of the whole model."""
    memory: MemoryEstimate
    """Of the worker that needs most."""
    pipeline: PipelineEstimate
    """Layers of each stage, and how long workers wait for one another."""

    @property
    def workers(self) -> list[Coordinate]:
        """Where each rank stands, in the order of ranks."""
        return [self.job.plan.coordinate(rank) for rank in range(self.job.plan.world_size)]

    @property
    def tokens_per_step(self) -> int:
        """Tokens that go through the model in one optimizer step."""
        return self.job.batch.sequences * self.job.data.sequence_tokens


def plan_job(job: JobSpec, model: ModelShape) -> JobPlan:
    """The plan of `job` for a model of this shape. Called on the driver. Raises SpecError where it
    cannot work."""
    job.check(model)
    return JobPlan(
        job=job,
        model=model,
        parameters=count_parameters(model),
        memory=estimate_memory(model, job),
        pipeline=estimate_pipeline(model, job),
    )

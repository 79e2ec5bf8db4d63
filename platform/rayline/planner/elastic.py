"""Which plan a job goes on with when the cluster is not what it was: arithmetic, no Ray.

The batch, the order of the data and the schedule stay what they are; only who computes what
changes. The data axis gives way first: it costs speed alone. A narrower pipeline, then a narrower
tensor axis, makes every worker hold more of the model. No axis grows beyond the job's own plan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import ceil, gcd

from rayline.errors import SpecError
from rayline.spec import JobSpec, ModelShape, ParallelPlan


def widest_that_fits(
    job: JobSpec, shape: ModelShape, fits: Callable[[JobSpec], bool]
) -> JobSpec | None:
    """`job` with the first of `narrower_plans` that batch, model and cluster admit; None where
    there is none. `fits` says whether the cluster has room for a job."""
    for plan in narrower_plans(job.plan):
        changed = _with_plan(job, plan, shape)
        if changed is not None and fits(changed):
            return changed
    return None


def narrower_plans(plan: ParallelPlan) -> Iterator[ParallelPlan]:
    """`plan`, then all that are nowhere wider, in the order in which they are to be preferred."""
    for tensor in _divisors(plan.tensor):
        for pipeline in range(plan.pipeline, 0, -1):
            for data in range(plan.data, 0, -1):
                yield _narrowed(plan, data, pipeline, tensor)


def _with_plan(job: JobSpec, plan: ParallelPlan, shape: ModelShape) -> JobSpec | None:
    """`job` under `plan`, its microbatches no larger than before, so that activations take no more
    memory; None where its batch or the model cannot be cut so."""
    if plan == job.plan:
        return job
    rows = job.batch.sequences // plan.data
    least = ceil(job.plan.microbatches * job.plan.data / plan.data)
    for microbatches in [count for count in range(least, rows + 1) if rows % count == 0]:
        tree = plan.changed({"microbatches": microbatches}).model_dump(mode="json")
        changed = job.changed({"plan": tree})
        try:
            changed.check(shape)
        except SpecError:
            continue
        return changed
    return None


def _narrowed(plan: ParallelPlan, data: int, pipeline: int, tensor: int) -> ParallelPlan:
    changes: dict[str, int | None] = {
        "data": data,
        "pipeline": pipeline,
        "tensor": tensor,
        "replicate": gcd(plan.replicate, data),
        "expert": gcd(plan.expert, data),
    }
    if pipeline != plan.pipeline:
        # Layers that were told by hand were told for other stages.
        changes["layers_per_stage"] = None
        changes["stages_per_worker"] = plan.stages_per_worker if pipeline > 1 else 1
    return plan.changed(changes)


def _divisors(size: int) -> list[int]:
    """Largest first."""
    return [one for one in range(size, 0, -1) if size % one == 0]

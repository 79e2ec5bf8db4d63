"""What to change where a worker had no memory left: single fields, by what each of them saves.

Arithmetic over the same estimate that `rayline plan` shows. An estimate may be wrong, which is why
there was none left; what a change saves of it is told as a share, and the largest comes first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rayline.errors import SpecError
from rayline.planner.memory import estimate_memory
from rayline.spec import JobSpec, ModelShape

_WORTH = 0.1
"""A change that saves less than this share of the estimate is not told."""
_TOLD = 3


@dataclass(frozen=True, slots=True)
class MemorySaving:
    """One change that lets a worker hold less, with the same batch and the same numbers."""

    override: str
    """As `--set` takes it."""
    worker_bytes: int
    """The worker that needs most, after it."""
    workers: int
    """Workers in all, after it, where those are more than before; else 0."""

    def __str__(self) -> str:
        more = f", {self.workers} workers" if self.workers else ""
        return f"--set {self.override} (about {self.worker_bytes / 2**30:.2f} GiB a worker{more})"


def memory_savings(job: JobSpec, shape: ModelShape) -> list[MemorySaving]:
    """The best change of each field that is worth while, the one that saves most among as many
    workers first, then those that need more workers. Called on the driver, after `job.check`."""
    now_bytes = estimate_memory(shape, job).total_bytes
    found: dict[str, MemorySaving] = {}
    for field, value in _candidates(job):
        try:
            changed = job.changed({field: value})
            changed.check(shape)
        except SpecError:
            continue
        worker_bytes = estimate_memory(shape, changed).total_bytes
        best = found[field].worker_bytes if field in found else (1 - _WORTH) * now_bytes
        if worker_bytes <= best:
            workers = changed.plan.world_size
            more = workers if workers > job.plan.world_size else 0
            found[field] = MemorySaving(f"{field}={str(value).lower()}", worker_bytes, more)
    return sorted(found.values(), key=lambda one: (bool(one.workers), one.worker_bytes))


def memory_advice(job: JobSpec, shape: ModelShape) -> str:
    """The first few of them in one line, to stand behind an error."""
    found = memory_savings(job, shape)
    if not found:
        return (
            "no single field would help much: use a smaller model, a shorter "
            "data.sequence_tokens, or workers with more memory"
        )
    now = estimate_memory(shape, job).total_bytes / 2**30
    told = "; or ".join(str(one) for one in found[:_TOLD])
    return f"{told}; it was estimated at {now:.2f} GiB a worker"


def _candidates(job: JobSpec) -> Iterator[tuple[str, object]]:
    plan = job.plan
    for times in (2, 4, 8):
        yield "plan.microbatches", times * plan.microbatches
    if job.recompute != "full":
        yield "recompute", "full"
    for stage in range(plan.zero_stage + 1, 4):
        yield "plan.zero_stage", stage
    if job.objective.chunk_tokens is None:
        yield "objective.chunk_tokens", 1024
    if plan.tensor > 1 and not plan.sequence:
        yield "plan.sequence", True
    yield "plan.tensor", 2 * plan.tensor
    yield "plan.pipeline", 2 * plan.pipeline
    yield "plan.data", 2 * plan.data

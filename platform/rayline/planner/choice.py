"""Which plan a job gets on a cluster, what else there is, and what that would lose.

Pure functions from (job, model, machines, curves) to values: the command line shows them, and the
driver takes the first of them where a job says `plan: auto`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from rayline.errors import SpecError
from rayline.planner.columns import Machines
from rayline.planner.curves import Curves
from rayline.planner.memory import MemoryEstimate, estimate_ends, estimate_memory
from rayline.planner.plan_grid import RECOMPUTE, Space, Workload
from rayline.planner.search import Candidate, Ranking, best_plans, predict_plan, rank_plans
from rayline.planner.stage_memory import GIB, SEGMENTS
from rayline.spec import JobSpec, ModelShape

SHOWN = 5


@dataclass(frozen=True, slots=True)
class Choice:
    """The plans of one search, fastest first."""

    job: JobSpec
    """As it was given; its plan may be auto."""
    shape: ModelShape
    machines: Machines
    curves: Curves
    best: tuple[Candidate, ...]
    ranking: Ranking
    own: Candidate | None
    """The job's own plan, where it names one for as many workers; whether it fits or not."""

    @property
    def load(self) -> Workload:
        """What one step computes."""
        return workload(self.job)

    @property
    def tried(self) -> int:
        """Plans that were predicted."""
        return self.ranking.tried

    def resolved(self, candidate: Candidate | None = None) -> JobSpec:
        """The job under `candidate`, or the best one. Raises SpecError where it cannot run so."""
        return with_candidate(self.job, candidate or self.best[0])


def workload(job: JobSpec) -> Workload:
    """What one step of the job computes."""
    return Workload(job.batch.sequences, job.data.sequence_tokens, job.precision)


def space_of(job: JobSpec, *, everything: bool = False) -> Space:
    """What may be chosen for the job: with `everything` all of it; else what the job leaves open,
    which is recompute where it says none."""
    method = ("ulysses",) if job.data.packing == "documents" else ("ulysses", "ring")
    offload = (False, True) if everything else (job.offload.optimizer != "none",)
    recompute: tuple[str, ...]
    if everything or job.recompute == "none":
        recompute = ("none",) if job.offload.activations != "none" else RECOMPUTE
    else:
        recompute = (job.recompute,)
    if job.compile is not None:
        recompute = tuple(one for one in recompute if one != "selective")
    schedules = Space().schedules
    if job.compile is not None:
        schedules, method = ("1f1b", "interleaved"), ("ulysses",)
    return Space(recompute, offload, schedules, context_methods=method)


def choose(
    job: JobSpec,
    shape: ModelShape,
    machines: Machines,
    curves: Curves,
    *,
    count: int = SHOWN,
    everything: bool = False,
) -> Choice:
    """The fastest plans of `job` on exactly these machines. Called on the driver. Raises SpecError
    where none fits, with the one that needs least."""
    if job.engine != "native":
        raise SpecError(
            "engine",
            "plans are chosen for the native engine",
            value=job.engine,
            allowed="native",
            fix="--set engine=native, or give plan by hand",
        )
    load = workload(job)
    fused = job.compile is not None
    ranking = rank_plans(
        shape, machines, load, curves, space_of(job, everything=everything), fused=fused
    )
    best = best_plans(ranking, admits(job, shape, machines, curves), count)
    if not best:
        raise _nothing_fits(job, machines, ranking)
    own = None
    if not job.plan.auto and job.plan.world_size == machines.gpus:
        own = predict_job(job, shape, machines, curves)
    return Choice(job, shape, machines, curves, tuple(best), ranking, own)


def predict_job(job: JobSpec, shape: ModelShape, machines: Machines, curves: Curves) -> Candidate:
    """What the job's own plan would take, with its memory counted exactly. Called on the driver,
    after `job.check`."""
    found = predict_plan(
        job.plan,
        shape,
        machines,
        workload(job),
        curves,
        recompute=job.recompute,
        offload=job.offload.optimizer != "none",
        fused=job.compile is not None,
    )
    return _exact(found, job, shape, machines, curves)


def with_candidate(job: JobSpec, candidate: Candidate) -> JobSpec:
    """The job under this plan. Raises SpecError where the spec does not admit it."""
    changes: dict[str, object] = {
        "plan": candidate.plan.model_dump(mode="json"),
        "recompute": candidate.recompute,
    }
    if candidate.offload != (job.offload.optimizer != "none"):
        changes["offload.optimizer"] = "cpu" if candidate.offload else "none"
    return job.changed(changes)


def overrides(job: JobSpec, candidate: Candidate) -> list[str]:
    """What `--set` would have to say to run the job under this plan."""
    flat, now = with_candidate(job, candidate).flat(), job.flat()
    names = [name for name in flat if flat[name] != now.get(name)]
    return [f"{name}={str(flat[name]).lower()}" for name in names if name != "plan.auto"]


def admits(
    job: JobSpec, shape: ModelShape, machines: Machines, curves: Curves
) -> Callable[[Candidate], Candidate | None]:
    """What lets a candidate pass that the job can run and whose memory, counted exactly, fits; it
    gives it back with that memory. What was too much once is not counted again."""
    room = machines.accelerator.memory_gib * GIB
    refused: dict[tuple[object, ...], float] = {}

    def admit(candidate: Candidate) -> Candidate | None:
        plan = candidate.plan
        key = (
            candidate.axes,
            plan.microbatches,
            plan.schedule,
            plan.stages_per_worker,
            candidate.recompute,
            candidate.offload,
        )
        if candidate.memory_bytes >= refused.get(key, float("inf")):
            return None
        try:
            changed = with_candidate(job, candidate)
            changed.check(shape, machines.node)
        except SpecError:
            return None
        ends = device_memory(estimate_ends(shape, changed), machines, curves)
        if ends.total_bytes <= room:
            exact = _exact(candidate, changed, shape, machines, curves)
            if exact.memory_bytes <= room:
                return exact
        refused[key] = candidate.memory_bytes
        return None

    return admit


def _exact(
    candidate: Candidate, job: JobSpec, shape: ModelShape, machines: Machines, curves: Curves
) -> Candidate:
    counted = device_memory(estimate_memory(shape, job), machines, curves)
    return replace(candidate, bytes=memory_parts(counted))


def device_memory(estimate: MemoryEstimate, machines: Machines, curves: Curves) -> MemoryEstimate:
    """The estimate with what the device takes besides."""
    on_cpu = machines.accelerator.generation == "cpu"
    base_gib = curves.process_gib if on_cpu else curves.reserved_gib
    return estimate.on_device(base_gib, curves.fragments * SEGMENTS)


def memory_parts(estimate: MemoryEstimate) -> dict[str, float]:
    """The parts of an estimate by name, at its peak: their sum is its total."""
    peak = estimate.at_peak()
    names = ("weights", "gradients", "optimizer", "activations", "logits", "buffers")
    return {name: float(getattr(peak, f"{name}_bytes")) for name in names}


def _nothing_fits(job: JobSpec, machines: Machines, ranking: Ranking) -> SpecError:
    gpus, kind = machines.gpus, machines.accelerator
    if not ranking.tried:
        return SpecError(
            "plan",
            f"no plan for exactly {gpus} workers divides the model and the batch",
            value=f"batch.sequences={job.batch.sequences}",
            fix="use a batch.sequences, or a number of workers, with more divisors in common",
        )
    least = ranking.candidate(int(np.argmin(ranking.memory.total)))
    return SpecError(
        "plan",
        f"none of {ranking.tried} plans fits {gpus} x {kind.name} with {kind.memory_gib:g} GiB: "
        f"{least.plan} with recompute {least.recompute} needs least, "
        f"{least.memory_bytes / GIB:.1f} GiB a worker",
        value="auto" if job.plan.auto else str(job.plan),
        fix="use more workers, GPUs with more memory, offload.optimizer: cpu, or a smaller "
        "data.sequence_tokens",
    )

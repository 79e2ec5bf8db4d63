"""Every plan that rayline can run, ranked by predicted step time.

The grid of all choices is predicted at once; then the fastest are taken one by one, and those stay
that the caller admits, who counts their memory exactly. One plan stands for all that differ from it
in less than the sizes of its axes: the fastest of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rayline.planner.columns import Columns, Habits, Layout, Machines, Sizes, stack
from rayline.planner.curves import Curves
from rayline.planner.plan_grid import (
    AXES,
    RECOMPUTE,
    SCHEDULE_BUBBLES,
    Grid,
    Space,
    Workload,
    grid_of,
    plan_columns,
    plan_grid,
)
from rayline.planner.stage_memory import GIB, StageMemory, predict_memory
from rayline.planner.step_time import StepTimes, predict_step, stage_seconds
from rayline.spec import ModelShape, ParallelPlan

_CLOSE = 1.1
"""How far beyond the memory an estimate of columns may lie for the plan to be counted exactly."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One plan with what it would take."""

    plan: ParallelPlan
    recompute: str
    offload: bool
    """Whether the optimizer's states stay in the host's memory."""
    seconds: dict[str, float]
    """Of one step, by what they are spent on: the fields of StepTimes without `_s`."""
    bytes: dict[str, float]
    """Of the worker that needs most, by what they hold: the fields of StageMemory."""

    @property
    def step_s(self) -> float:
        """The whole step."""
        return sum(self.seconds.values())

    @property
    def memory_bytes(self) -> float:
        """All of it."""
        return sum(self.bytes.values())

    @property
    def axes(self) -> tuple[int, int, int, int, int]:
        """Sizes of the axes: what makes two candidates two plans."""
        plan = self.plan
        return plan.tensor, plan.pipeline, plan.context, plan.data, plan.expert


@dataclass(frozen=True, slots=True)
class Ranking:
    """All candidates of one search, as columns, fastest first."""

    columns: Columns
    times: StepTimes
    memory: StageMemory
    order: NDArray[np.int64]
    """Numbers of those that fit, fastest first."""
    tried: int
    """Plans that the axes' sizes admit."""
    choices: Grid

    def candidate(self, number: int) -> Candidate:
        """The candidate of this number."""
        c, choices = self.columns, self.choices

        def one(name: str) -> int:
            array = choices[name] if name in choices else getattr(c, name)
            return int(array[number])

        schedules = tuple(SCHEDULE_BUBBLES)
        plan = ParallelPlan.model_construct(
            **{
                **_DEFAULTS,
                "data": one("data"),
                "tensor": one("tensor"),
                "pipeline": one("pipeline"),
                "context": one("context"),
                "context_method": "ulysses" if one("ulysses") else "ring",
                "expert": one("expert"),
                "zero_stage": one("zero_stage"),
                "replicate": one("replicate"),
                "microbatches": one("microbatches"),
                "sequence": bool(one("sequence")),
                "schedule": schedules[one("schedule")],
                "stages_per_worker": one("chunks"),
            }
        )
        return Candidate(
            plan=plan,
            recompute=RECOMPUTE[one("recompute_kind")],
            offload=bool(one("offload")),
            seconds=_at(self.times, number),
            bytes=_at(self.memory, number),
        )


_DEFAULTS = ParallelPlan().model_dump()


def _at(arrays: StepTimes | StageMemory, number: int) -> dict[str, float]:
    names = arrays.__dataclass_fields__
    return {name.removesuffix("_s"): float(getattr(arrays, name)[number]) for name in names}


def rank_plans(
    shape: ModelShape,
    machines: Machines,
    load: Workload,
    curves: Curves,
    space: Space | None = None,
    *,
    fused: bool = False,
) -> Ranking:
    """All plans for exactly `machines.gpus` workers, with the numbers of those that fit fastest
    first. Called on the driver."""
    space = space or Space()
    choices = plan_grid(shape, machines, load, space)
    columns = _columns(shape, machines, load, choices, fused)
    times, memory = predict_step(columns, curves), predict_memory(columns, curves)
    total = times.total_s
    room = machines.accelerator.memory_gib * GIB * _CLOSE
    fitting = np.flatnonzero(memory.total <= room)
    order = fitting[np.argsort(total[fitting], kind="stable")]
    return Ranking(columns, times, memory, order, len(total), choices)


def best_plans(
    ranking: Ranking,
    admits: Callable[[Candidate], Candidate | None],
    count: int,
    most_tried: int = 1000,
) -> list[Candidate]:
    """The first `count` candidates of different axes that `admits` lets pass; it gives back the
    candidate with its memory counted exactly. Called on the driver."""
    found: dict[tuple[int, ...], Candidate] = {}
    for number in ranking.order[:most_tried]:
        axes = tuple(int(ranking.choices[name][number]) for name in AXES)
        if axes in found:
            continue
        admitted = admits(ranking.candidate(int(number)))
        if admitted is not None:
            found[axes] = admitted
        if len(found) == count:
            break
    return list(found.values())


def _columns(
    shape: ModelShape,
    machines: Machines,
    load: Workload,
    g: Grid,
    fused: bool,
) -> Columns:
    """The grid as the predictions take it, with what rayline's native engine does."""
    one = stack([(Sizes.of(shape), machines, Layout(), Habits(), load.tokens, load.precision)])
    return one.with_arrays(**plan_columns(g, load.precision, fused))


def predict_plan(
    plan: ParallelPlan,
    shape: ModelShape,
    machines: Machines,
    load: Workload,
    curves: Curves,
    *,
    recompute: str = "none",
    offload: bool = False,
    fused: bool = False,
) -> Candidate:
    """What this one plan would take. Called on the driver, after `plan.check`."""
    grid = grid_of(plan, load, recompute, offload=offload)
    columns = _columns(shape, machines, load, grid, fused)
    times, memory = predict_step(columns, curves), predict_memory(columns, curves)
    return Candidate(plan, recompute, offload, _at(times, 0), _at(memory, 0))


def layer_seconds(
    candidate: Candidate,
    shape: ModelShape,
    machines: Machines,
    load: Workload,
    curves: Curves,
) -> tuple[float, float, float]:
    """Seconds of one microbatch under this plan: in one layer forward and backward, and in the
    head. Called on the driver, for pictures."""
    plan, recompute = candidate.plan, candidate.recompute
    grid = grid_of(plan, load, recompute, offload=candidate.offload)
    forward, backward, head = stage_seconds(_columns(shape, machines, load, grid, False), curves)
    return float(forward[0]), float(backward[0]), float(head[0])

"""A pipeline's bubble by simulation, against torch's orders and the papers' formulas."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.distributed.pipelining import PipelineStage
from torch.testing._internal.distributed.fake_pg import FakeStore

from rayline.parallel.pipeline import schedule_over
from rayline.planner import estimate_pipeline
from rayline.planner.pipeline import StageTimes, peak_in_flight, simulate
from rayline.planner.schedule import Action, action_orders
from rayline.spec import SCHEDULES, JobSpec, ModelShape, ParallelPlan

EVEN = StageTimes(forward=1.0, backward_input=1.0, backward_weight=1.0)


@st.composite
def pipelines(draw: st.DrawFn) -> ParallelPlan:
    """Plans that `check` lets pass."""
    schedule = draw(st.sampled_from(sorted(SCHEDULES)))
    rules = SCHEDULES[schedule]
    workers = draw(st.integers(2, 6))
    microbatches = draw(st.integers(workers if schedule == "1f1b" else 1, 24))
    if rules.placement == "loop" and schedule not in ("gpipe", "1f1b"):
        microbatches -= microbatches % max(1, microbatches // workers)
    return ParallelPlan(
        pipeline=workers,
        microbatches=microbatches,
        schedule=schedule,
        stages_per_worker=draw(st.integers(rules.fewest_stages, rules.most_stages or 3)),
    )


@settings(deadline=None)
@given(pipelines())
def test_every_microbatch_passes_every_stage_once(plan: ParallelPlan) -> None:
    found = Counter(action for order in action_orders(plan) for action in order)

    works = "FIW" if plan.splits_backward else "FB"
    assert found == Counter(
        Action(work, stage, microbatch)
        for work in works
        for stage in range(plan.stages)
        for microbatch in range(plan.microbatches)
    )


@settings(deadline=None)
@given(pipelines(), st.data())
def test_no_schedule_waits_for_ever_whatever_the_stages_cost(
    plan: ParallelPlan, data: st.DataObject
) -> None:
    cost = st.floats(0.1, 5.0)
    times = [StageTimes(*data.draw(st.tuples(cost, cost, cost))) for _ in range(plan.stages)]

    timeline = simulate(plan, times)

    assert max(timeline.busy) <= timeline.length * (1 + 1e-9)
    assert 0 <= timeline.bubble_share < 1
    work = sum(t.forward + t.backward_input + t.backward_weight for t in times)
    assert sum(timeline.busy) == pytest.approx(plan.microbatches * work)


@pytest.mark.parametrize("workers", [2, 3, 4])
def test_orders_are_those_that_torch_runs(workers: int) -> None:
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=workers)
    try:
        compared = sum(
            compare_with_torch(workers, schedule, stages, microbatches)
            for schedule, stages in (
                ("interleaved", 2),
                ("interleaved", 3),
                ("zero_bubble", 1),
                ("zero_bubble", 2),
                ("zero_bubble_v", 2),
            )
            for microbatches in range(1, 13)
        )
    finally:
        dist.destroy_process_group()
    assert compared >= 80


def compare_with_torch(workers: int, schedule: Any, stages: int, microbatches: int) -> int:
    """Number of orders compared: none where torch refuses the microbatches, as `check` does."""
    plan = ParallelPlan(
        pipeline=workers, stages_per_worker=stages, schedule=schedule, microbatches=microbatches
    )
    passing = torch.empty(1, 4, device="meta")
    held = [
        PipelineStage(
            nn.Identity(),
            stage,
            plan.stages,
            torch.device("cpu"),
            input_args=passing,
            output_args=passing,
        )
        for stage in plan.stages_of_worker(0)
    ]
    rounds = max(1, microbatches // workers)
    if schedule != "zero_bubble_v" and microbatches % rounds:
        with pytest.raises(ValueError, match="multiple of the number of rounds"):
            schedule_over(held, schedule, microbatches, torch.dist)
        return 0
    theirs: Any = schedule_over(held, schedule, microbatches, torch.dist)
    for worker, order in enumerate(action_orders(plan)):
        actions = [str(action) for action in theirs.pipeline_order[worker] if action is not None]
        assert actions == [f"{a.stage}{a.work}{a.microbatch}" for a in order]
    return workers


@settings(deadline=None)
@given(workers=st.integers(2, 8), rounds=st.integers(1, 6), stages=st.integers(2, 4))
def test_bubbles_of_even_stages_are_those_of_narayanan(
    workers: int, rounds: int, stages: int
) -> None:
    """Section 2.2: (p - 1) / m of the ideal time, divided by the stages a worker holds."""
    microbatches = workers * rounds
    plan = ParallelPlan(pipeline=workers, microbatches=microbatches)

    for schedule, held in (("gpipe", 1), ("1f1b", 1), ("interleaved", stages)):
        timed = plan.changed({"schedule": schedule, "stages_per_worker": held})
        timeline = simulate(timed, [EVEN] * timed.stages)
        ideal = 3 * microbatches * held
        bubble = 3 * (workers - 1)
        assert timeline.length == pytest.approx(ideal + bubble)
        assert timeline.bubble_share == pytest.approx(bubble / (ideal + bubble))


@settings(deadline=None)
@given(workers=st.integers(2, 6), rounds=st.integers(2, 5))
def test_zero_bubble_leaves_a_third_of_the_bubble(workers: int, rounds: int) -> None:
    """Qi et al. 2023, table 2: (p - 1)(F + B - W) for ZB-H1 against (p - 1)(F + B + W)."""
    plan = ParallelPlan(pipeline=workers, microbatches=workers * rounds)
    whole = simulate(plan, [EVEN] * workers)
    split = simulate(plan.changed({"schedule": "zero_bubble"}), [EVEN] * workers)

    ideal = 3 * plan.microbatches
    assert split.length - ideal == pytest.approx((whole.length - ideal) / 3)


def test_the_first_stage_does_its_whole_backward_pass_at_once() -> None:
    plan = ParallelPlan(pipeline=2, microbatches=2, schedule="zero_bubble")
    ends = simulate(plan, [StageTimes(1, 10, 100), StageTimes(1, 10, 100)]).ends

    assert ends[Action("I", 0, 0)] == ends[Action("I", 1, 0)] == 12
    assert ends[Action("W", 0, 0)] == 12 + 110


def test_a_costlier_last_stage_makes_the_others_wait() -> None:
    plan = ParallelPlan(pipeline=2, microbatches=8)
    heavy = StageTimes(2.0, 2.0, 2.0)
    # The last stage is never idle but for the first forward and the last backward of the other.
    assert simulate(plan, [EVEN, heavy]).length == pytest.approx(8 * 6 + 1 + 2)


def test_microbatches_in_flight_fall_from_worker_to_worker_in_1f1b() -> None:
    plan = ParallelPlan(pipeline=4, microbatches=8)
    peaks = [peak_in_flight(order, {w: 1}) for w, order in enumerate(action_orders(plan))]
    assert peaks == [4, 3, 2, 1]


SMOLLM2 = ModelShape(
    layers=30,
    hidden=576,
    heads=9,
    kv_heads=3,
    head_dim=64,
    ffn=1536,
    vocab=49152,
    tied_embeddings=True,
    max_positions=8192,
)


def job(**plan: Any) -> JobSpec:
    tree = {
        "name": "job",
        "model": {"directory": "m"},
        "steps": 1,
        "data": {"kind": "text", "files": ["a.txt"], "sequence_tokens": 512},
        "batch": {"sequences": 16},
        "optim": {"lr": 1e-3},
        "plan": plan,
    }
    return JobSpec.parse(tree)


def test_balanced_stages_make_a_shorter_step_than_equal_ones() -> None:
    balanced = estimate_pipeline(SMOLLM2, job(pipeline=2, microbatches=8))
    equal = estimate_pipeline(SMOLLM2, job(pipeline=2, microbatches=8, layers_per_stage=[15, 15]))

    assert balanced.stage_layers == (19, 11)
    assert balanced.relative_step < 0.9 * equal.relative_step


def test_one_worker_never_waits() -> None:
    estimate = estimate_pipeline(SMOLLM2, job(microbatches=4))

    assert estimate.stage_layers == (30,)
    assert estimate.bubble_share == pytest.approx(0)
    assert estimate.relative_step == pytest.approx(1)


LLAMA_8B = ModelShape(
    layers=32,
    hidden=4096,
    heads=32,
    kv_heads=8,
    head_dim=128,
    ffn=14336,
    vocab=128256,
    tied_embeddings=False,
    max_positions=8192,
)


def test_schedules_stand_in_the_order_of_their_bubbles() -> None:
    """Llama 3.1 8B on four workers: its head weighs 2.3 layers, so stages are not quite even."""
    schedules = (
        ("1f1b", 1),
        ("interleaved", 2),
        ("zero_bubble", 1),
        ("zero_bubble", 2),
        ("zero_bubble_v", 2),
    )
    found = [
        estimate_pipeline(
            LLAMA_8B,
            job(pipeline=4, microbatches=16, schedule=schedule, stages_per_worker=stages),
        )
        for schedule, stages in schedules
    ]

    assert found[0].stage_layers == (8, 9, 9, 6)
    assert found[1].stage_layers == (4, 4, 5, 4, 4, 5, 4, 2)
    steps = [estimate.relative_step for estimate in found]
    assert steps == sorted(steps, reverse=True)
    assert steps[0] > 1.2
    assert steps[-1] < 1.1


def test_interleaving_does_not_pay_where_the_head_outweighs_a_stage() -> None:
    """Of eight stages of SmolLM2 the last costs nine layers where the others have less than five:
    the simulation says so before anybody tries."""
    plain = estimate_pipeline(SMOLLM2, job(pipeline=4, microbatches=16))
    interleaved = estimate_pipeline(
        SMOLLM2, job(pipeline=4, microbatches=16, schedule="interleaved", stages_per_worker=2)
    )
    assert interleaved.relative_step > plain.relative_step

"""Topology as arithmetic: where each rank stands, who its neighbours are, what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayline.errors import PlacementError, SpecError
from rayline.spec import AXES, Coordinate, ModelShape, ParallelPlan

PLANS = st.builds(
    ParallelPlan,
    data=st.integers(1, 4),
    tensor=st.integers(1, 4),
    pipeline=st.integers(1, 4),
    context=st.integers(1, 3),
)
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

PIPELINE = ParallelPlan(pipeline=4, stages_per_worker=2, schedule="interleaved", microbatches=4)


@given(PLANS)
def test_ranks_and_coordinates_are_one_to_one(plan: ParallelPlan) -> None:
    places = [plan.coordinate(rank) for rank in range(plan.world_size)]

    assert len(set(places)) == plan.world_size
    assert [plan.rank(place) for place in places] == list(range(plan.world_size))
    assert all(getattr(p, axis) < getattr(plan, axis) for p in places for axis in AXES)


@given(PLANS, st.sampled_from(AXES))
def test_groups_of_an_axis_part_the_ranks(plan: ParallelPlan, axis: str) -> None:
    groups = plan.groups(axis)

    assert sorted(rank for group in groups for rank in group) == list(range(plan.world_size))
    for group in groups:
        places = [plan.coordinate(rank) for rank in group]
        assert [getattr(place, axis) for place in places] == list(range(getattr(plan, axis)))
        others = {tuple(getattr(p, other) for other in AXES if other != axis) for p in places}
        assert len(others) == 1


@given(PLANS)
def test_a_tensor_group_is_a_run_of_ranks(plan: ParallelPlan) -> None:
    for group in plan.groups("tensor"):
        assert group == tuple(range(group[0], group[0] + plan.tensor))


@given(PLANS)
def test_pipeline_is_the_outermost_axis(plan: ParallelPlan) -> None:
    stage_size = plan.world_size // plan.pipeline
    assert all(
        plan.coordinate(rank).pipeline == rank // stage_size for rank in range(plan.world_size)
    )


def test_a_rank_outside_the_plan_is_refused() -> None:
    with pytest.raises(SpecError, match=r"rank.*found 4[\s\S]*0\.\.3"):
        ParallelPlan(data=4).coordinate(4)


def test_a_coordinate_names_itself_for_logs() -> None:
    assert str(Coordinate(pipeline=1, data=0, context=0, tensor=2)) == "pp1-dp0-cp0-tp2"


@pytest.mark.parametrize(
    ("plan", "batch"),
    [
        (ParallelPlan(), 1),
        (ParallelPlan(tensor=3, pipeline=2, microbatches=2), 4),
        (ParallelPlan(data=2, tensor=3, pipeline=30, microbatches=30), 60),
        (ParallelPlan(pipeline=4, microbatches=1, schedule="gpipe"), 1),
        (PIPELINE.changed({"microbatches": 6}), 6),
        (PIPELINE.changed({"schedule": "zero_bubble", "data": 2, "zero_stage": 2}), 8),
        (PIPELINE.changed({"schedule": "zero_bubble_v", "microbatches": 7}), 7),
        (PIPELINE.changed({"layers_per_stage": [1, 7, 4, 3, 3, 4, 4, 4]}), 4),
    ],
)
def test_plans_that_can_work_pass(plan: ParallelPlan, batch: int) -> None:
    plan.check(SMOLLM2, batch, workers_per_node=3)


@pytest.mark.parametrize(
    ("plan", "batch", "subject", "message"),
    [
        (ParallelPlan(tensor=2), 4, "plan.tensor", "9 attention heads"),
        (ParallelPlan(tensor=9), 9, "plan.tensor", "1536 feed-forward width"),
        (ParallelPlan(pipeline=31, microbatches=31), 31, "plan.pipeline", "30 layers"),
        (ParallelPlan(data=4, microbatches=2), 12, "batch.sequences", "4 x 2"),
        (ParallelPlan(pipeline=3, microbatches=2), 4, "plan.microbatches", "1f1b"),
        (ParallelPlan(context=2), 2, "plan.context", "9 attention heads"),
        (
            ParallelPlan(tensor=3, context=2),
            2,
            "plan.context",
            "3 attention heads of a tensor rank",
        ),
        (ParallelPlan(data=4, replicate=3), 4, "plan.replicate", "plan.data = 4"),
        (ParallelPlan(expert=2, data=2), 2, "plan.expert", "the model is dense"),
        (ParallelPlan(stages_per_worker=2), 1, "plan.stages_per_worker", "1 on a pipeline of one"),
        (
            PIPELINE.changed({"schedule": "1f1b"}),
            4,
            "plan.stages_per_worker",
            "not what the 1f1b schedule can run (found 2)",
        ),
        (PIPELINE.changed({"stages_per_worker": 1}), 4, "plan.stages_per_worker", "2 or more"),
        (
            PIPELINE.changed({"schedule": "zero_bubble_v", "stages_per_worker": 3}),
            4,
            "plan.stages_per_worker",
            "allowed: 2",
        ),
        (PIPELINE.changed({"stages_per_worker": 8}), 4, "plan.pipeline", "32 stages are more"),
        (PIPELINE.changed({"microbatches": 9}), 9, "plan.microbatches", "2 equal rounds"),
        (
            PIPELINE.changed({"schedule": "zero_bubble", "data": 2}),
            8,
            "plan.zero_stage",
            "allowed: 0, 1, 2",
        ),
        (
            PIPELINE.changed({"layers_per_stage": [30]}),
            4,
            "plan.layers_per_stage",
            "names 1 stages where the plan has 8",
        ),
        (
            PIPELINE.changed({"layers_per_stage": [0, 8, 4, 3, 3, 4, 4, 4]}),
            4,
            "plan.layers_per_stage",
            "without a layer",
        ),
        (
            PIPELINE.changed({"layers_per_stage": [4] * 8}),
            4,
            "plan.layers_per_stage",
            "adds up to 32 layers where the model has 30",
        ),
    ],
)
def test_plans_that_cannot_work_are_refused_by_name(
    plan: ParallelPlan, batch: int, subject: str, message: str
) -> None:
    with pytest.raises(SpecError) as refused:
        plan.check(SMOLLM2, batch)

    assert refused.value.subject == subject
    assert message in str(refused.value)
    assert refused.value.exit_code == 2


@pytest.mark.parametrize(
    ("plan", "subject", "message", "allowed"),
    [
        (ParallelPlan(data=6, expert=4), "plan.expert", "plan.data = 6", "1, 2"),
        (ParallelPlan(data=9, expert=3), "plan.expert", "the model's 8 experts", "1"),
        (ParallelPlan(data=2, expert=4), "plan.expert", "must divide", "1, 2"),
        (ParallelPlan(data=8, expert=4, replicate=4), "plan.replicate", "leaves 2 data", "1, 2"),
    ],
)
def test_experts_that_cannot_be_spread_are_refused_by_name(
    plan: ParallelPlan, subject: str, message: str, allowed: str
) -> None:
    mixture = replace(SMOLLM2, experts=8, experts_per_token=2, expert_ffn=512)
    with pytest.raises(SpecError) as refused:
        plan.check(mixture, plan.data)
    assert refused.value.subject == subject
    assert message in str(refused.value)
    assert refused.value.allowed == allowed
    plan.changed({refused.value.subject.removeprefix("plan."): 1}).check(mixture, plan.data)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 3), st.integers(1, 2))
def test_neighbours_along_the_data_axis_have_one_set_of_experts_between_them(
    expert: int, copies: int, context: int, tensor: int
) -> None:
    plan = ParallelPlan(data=expert * copies, expert=expert, context=context, tensor=tensor)
    for group in plan.groups("data"):
        places = [plan.expert_place(plan.coordinate(rank)) for rank in group]
        assert places == [*range(expert)] * copies


def test_a_plan_that_spreads_experts_says_so() -> None:
    plan = ParallelPlan(data=4, tensor=2, expert=2)
    assert str(plan) == "data 4 x tensor 2, experts over 2"
    assert plan.world_size == 8


def test_fewer_key_value_heads_than_ranks_are_shared_but_none_is_cut() -> None:
    model = replace(SMOLLM2, heads=8, kv_heads=2)
    ParallelPlan(tensor=8).check(model, 1)
    with pytest.raises(SpecError, match="3 key-value heads"):
        ParallelPlan(tensor=4).check(replace(model, kv_heads=3), 1)


def test_a_refused_number_of_microbatches_comes_with_one_that_works() -> None:
    with pytest.raises(SpecError) as refused:
        PIPELINE.changed({"microbatches": 9}).check(SMOLLM2, 9)
    assert refused.value.fix == "--set plan.microbatches=12"
    PIPELINE.changed({"microbatches": 12}).check(SMOLLM2, 12)


def test_a_refused_tensor_size_comes_with_those_that_work() -> None:
    with pytest.raises(SpecError) as refused:
        ParallelPlan(tensor=2).check(SMOLLM2, 2)
    assert refused.value.allowed == "1, 3"


def test_a_refused_batch_comes_with_one_that_works() -> None:
    with pytest.raises(SpecError) as refused:
        ParallelPlan(data=4).check(SMOLLM2, 3)
    assert refused.value.fix == "--set batch.sequences=4"


def test_a_tensor_group_wider_than_any_node_is_a_matter_of_placement() -> None:
    with pytest.raises(PlacementError, match="3 wanted, the largest node has 2") as refused:
        ParallelPlan(tensor=3).check(SMOLLM2, 3, workers_per_node=2)
    assert refused.value.exit_code == 3


@given(PLANS, st.integers(1, 64))
def test_a_batch_that_passes_divides_evenly(plan: ParallelPlan, batch: int) -> None:
    plan = plan.changed({"context": 1, "tensor": 1, "microbatches": plan.pipeline})
    try:
        plan.check(SMOLLM2, batch)
    except SpecError:
        assert batch % (plan.data * plan.microbatches)
    else:
        assert batch % (plan.data * plan.microbatches) == 0

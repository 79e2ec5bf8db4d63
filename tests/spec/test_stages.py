"""Which worker holds which stage, and how many layers a stage takes."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayline.spec import SCHEDULES, ForwardCost, ModelShape, ParallelPlan, forward_cost
from rayline.spec.stages import balance_layers


@st.composite
def pipelines(draw: st.DrawFn) -> ParallelPlan:
    """Plans whose schedule can run as many stages a worker."""
    schedule = draw(st.sampled_from(sorted(SCHEDULES)))
    rules = SCHEDULES[schedule]
    stages = draw(st.integers(rules.fewest_stages, rules.most_stages or 4))
    return ParallelPlan(
        pipeline=draw(st.integers(2, 8)), stages_per_worker=stages, schedule=schedule
    )


@given(pipelines())
def test_every_stage_lies_on_exactly_one_worker(plan: ParallelPlan) -> None:
    held = [plan.stages_of_worker(worker) for worker in range(plan.pipeline)]

    assert sorted(stage for stages in held for stage in stages) == list(range(plan.stages))
    for worker, stages in enumerate(held):
        assert len(stages) == plan.stages_per_worker
        assert list(stages) == sorted(stages)
        assert all(plan.worker_of_stage(stage) == worker for stage in stages)


@given(pipelines())
def test_neighbouring_stages_lie_on_neighbouring_workers(plan: ParallelPlan) -> None:
    for stage in range(plan.stages - 1):
        step = plan.worker_of_stage(stage + 1) - plan.worker_of_stage(stage)
        if plan.schedule == "zero_bubble_v":
            assert step == (1 if stage < plan.pipeline - 1 else 0 if stage < plan.pipeline else -1)
        else:
            assert step in (1, 1 - plan.pipeline)


@given(pipelines())
def test_the_first_stage_lies_on_the_first_worker(plan: ParallelPlan) -> None:
    last = plan.worker_of_stage(plan.stages - 1)

    assert plan.worker_of_stage(0) == 0
    assert last == (0 if plan.schedule == "zero_bubble_v" else plan.pipeline - 1)


COSTS = st.builds(
    ForwardCost,
    layer_matrices=st.integers(1, 50),
    layer_attention=st.integers(0, 20),
    embedding=st.integers(0, 30),
    head=st.integers(0, 400),
    loss=st.integers(0, 30),
)


def busiest(counts: tuple[int, ...], cost: ForwardCost, workers: list[int]) -> int:
    """What the worker that has most to do has to do."""
    found = [count * cost.layer for count in counts]
    found[0] += cost.embedding
    found[-1] += cost.head + cost.loss
    return max(
        sum(load for load, at in zip(found, workers, strict=True) if at == worker)
        for worker in workers
    )


@settings(deadline=None)
@given(COSTS, st.sampled_from([[0], [0, 1], [0, 1, 2], [0, 1, 0, 1], [0, 1, 1, 0]]), st.data())
def test_no_other_split_leaves_the_busiest_worker_less(
    cost: ForwardCost, workers: list[int], data: st.DataObject
) -> None:
    stages = len(workers)
    layers = stages + data.draw(st.integers(0, 5))
    counts = balance_layers(layers, cost, workers)

    assert sum(counts) == layers
    assert min(counts) >= 1
    others = (
        split for split in product(range(1, layers + 1), repeat=stages) if sum(split) == layers
    )
    assert busiest(counts, cost, workers) == min(busiest(other, cost, workers) for other in others)


@given(st.integers(1, 64), st.integers(1, 16), st.integers(0, 60))
def test_without_ends_stages_differ_by_one_layer_at_most(
    layer: int, stages: int, more: int
) -> None:
    counts = balance_layers(stages + more, ForwardCost(layer, 0, 0, 0, 0), range(stages))
    assert max(counts) - min(counts) <= 1


def test_a_layer_left_over_goes_to_the_worker_that_has_less_to_do() -> None:
    """Two stages each on a loop of two workers; the head lies on the second worker."""
    cost = ForwardCost(layer_matrices=10, layer_attention=0, embedding=0, head=10, loss=0)
    assert balance_layers(5, cost, [0, 1, 0, 1]) == (1, 1, 2, 1)


def test_fewer_layers_than_stages_are_an_error() -> None:
    with pytest.raises(ValueError, match="2 layers cannot fill 3 stages"):
        balance_layers(2, ForwardCost(1, 0, 0, 0, 0), range(3))


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


def test_the_head_of_a_small_model_with_many_words_weighs_eight_layers() -> None:
    cost = forward_cost(SMOLLM2, sequence_tokens=512)

    assert cost.head / cost.layer_matrices == pytest.approx(8.0, abs=0.01)
    assert ParallelPlan(pipeline=2).stage_layers(SMOLLM2, 512) == (19, 11)


def test_layers_told_by_hand_are_taken() -> None:
    plan = ParallelPlan(pipeline=2, layers_per_stage=(10, 20))
    assert plan.stage_layers(SMOLLM2, 512) == (10, 20)


def test_operations_are_twice_the_matrices_of_the_model() -> None:
    """Six matrices and a feed-forward of three, written out for one layer."""
    cost = forward_cost(SMOLLM2, sequence_tokens=1000)

    weights = 576 * 576 * 2 + 576 * 192 * 2 + 3 * 576 * 1536
    assert cost.layer_matrices == 2 * weights
    mixture = replace(SMOLLM2, experts=8, experts_per_token=2)
    active = weights + 3 * 576 * 1536 + 8 * 576
    assert forward_cost(mixture, sequence_tokens=1000).layer_matrices == 2 * active
    # A token attends to 500 others on average: two products of 576 numbers with each.
    assert cost.layer_attention == 2 * 2 * 576 * 500

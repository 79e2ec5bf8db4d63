"""What a job does with fewer workers: its batch stays, and no axis grows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayline.planner import narrower_plans, widest_that_fits
from rayline.spec import JobSpec, ModelShape, ParallelPlan

SHAPE = ModelShape.from_config(
    {
        "num_hidden_layers": 8,
        "hidden_size": 64,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "intermediate_size": 128,
        "vocab_size": 512,
    }
)
SIZES = {"data": (1, 2, 3, 4, 6), "tensor": (1, 2, 4), "pipeline": (1, 2, 3, 4)}


def job(plan: dict[str, object]) -> JobSpec:
    return JobSpec.parse(
        {
            "name": "elastic",
            "model": {"directory": "model"},
            "steps": 10,
            "data": {"kind": "text", "files": ["a.txt"], "sequence_tokens": 64},
            "batch": {"sequences": 96},
            "optim": {"lr": 1e-3},
            "plan": {"zero_stage": 1, **plan},
        }
    )


@st.composite
def wanted_jobs(draw: st.DrawFn) -> JobSpec:
    sizes = {axis: draw(st.sampled_from(choices)) for axis, choices in SIZES.items()}
    return job({**sizes, "microbatches": draw(st.sampled_from((4, 8)))})


def rows(of: JobSpec) -> float:
    """Sequences that a worker computes at a time."""
    return of.batch.sequences / of.plan.data / of.plan.microbatches


@given(wanted=wanted_jobs(), most=st.integers(min_value=1, max_value=96))
def test_what_is_chosen_fits_is_nowhere_wider_and_takes_no_more_at_a_time(
    wanted: JobSpec, most: int
) -> None:
    found = widest_that_fits(wanted, SHAPE, lambda job: job.plan.world_size <= most)
    assert found is not None
    found.check(SHAPE)
    assert found.plan.world_size <= most
    for axis in SIZES:
        assert getattr(found.plan, axis) <= getattr(wanted.plan, axis)
    if wanted.plan.world_size <= most:
        assert found == wanted
    else:
        assert rows(found) <= rows(wanted)
    assert found.changed({"plan": wanted.plan.model_dump(mode="json")}) == wanted


@pytest.mark.parametrize(
    ("workers", "sizes"),
    [
        (16, (4, 2, 2, 2)),
        (15, (3, 2, 2, 4)),
        (9, (2, 2, 2, 4)),
        (7, (1, 2, 2, 8)),
        (3, (1, 1, 2, 8)),
        (1, (1, 1, 1, 8)),
    ],
)
def test_data_gives_way_first_then_the_pipeline_then_tensor(
    workers: int, sizes: tuple[int, ...]
) -> None:
    wanted = job({"data": 4, "pipeline": 2, "tensor": 2, "microbatches": 2})
    found = widest_that_fits(wanted, SHAPE, lambda job: job.plan.world_size <= workers)
    assert found is not None
    plan = found.plan
    assert (plan.data, plan.pipeline, plan.tensor, plan.microbatches) == sizes


def test_copies_and_experts_stay_divisors_of_the_data_axis() -> None:
    plan = ParallelPlan(data=8, replicate=4, expert=2)
    for one in narrower_plans(plan):
        assert one.data % one.replicate == 0
        assert one.data % one.expert == 0


def test_nothing_is_found_where_nothing_fits() -> None:
    assert widest_that_fits(job({"data": 2}), SHAPE, lambda job: False) is None


def test_a_batch_that_cannot_be_cut_in_three_goes_on_in_two() -> None:
    wanted = job({"data": 4}).changed({"batch.sequences": 16})
    found = widest_that_fits(wanted, SHAPE, lambda job: job.plan.world_size <= 3)
    assert found is not None
    assert found.plan.data == 2

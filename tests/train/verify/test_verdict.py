"""Figures become verdicts: what is equal, what differs, and what a difference looks like."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayline.errors import SpecError
from rayline.spec import JobSpec, ParallelPlan
from rayline.train.verify.trial import alone, plan_axes, verified_job
from rayline.train.verify.verdict import (
    FIRST_RESUMED,
    Figures,
    Measured,
    Verdict,
    axis_sizes,
    did_not_run,
    guilty,
    hint,
    judge,
    resume_hint,
)

PLAN = ParallelPlan(data=2, tensor=4, microbatches=3)
SIZES = axis_sizes(PLAN)
positive = st.floats(1e-6, 1e6)


def figures(name: str = "weight", ratio: float = 1.0, **changes: float) -> Figures:
    values = {"here": ratio, "there": 1.0, "apart": abs(ratio - 1)} | changes
    return Figures(name, **values)


def measured(*gradients: Figures, resumed: tuple[Figures, ...] = ()) -> Measured:
    fine = (Figures("step 1", 2.0, 2.0, 0.0),)
    return Measured((), gradients, fine, fine, (), resumed, 10)


@given(there=positive, error=st.floats(0, 0.9e-4))
def test_rounding_is_equal(there: float, error: float) -> None:
    one = Figures("weight", there, there, there * error)
    assert judge("plan", PLAN, "fp32", measured(one)).equal


@given(there=positive, error=st.floats(1.1e-4, 1e3))
def test_more_than_rounding_differs(there: float, error: float) -> None:
    one = Figures("weight", there, there, there * error)
    verdict = judge("plan", PLAN, "fp32", measured(one))
    assert [offence.name for offence in verdict.offences] == ["weight"]
    assert verdict.offences[0].error == pytest.approx(error)


def test_measured_noise_is_allowed_a_few_times() -> None:
    almost_zero = Figures("k_proj.bias", 1.2e-9, 1e-9, 1.5e-9, noise=1e-9)
    assert judge("plan", PLAN, "fp32", measured(almost_zero)).equal
    silent = Figures("k_proj.bias", 1.2e-9, 1e-9, 1.5e-9)
    assert not judge("plan", PLAN, "fp32", measured(silent)).equal


def test_bf16_allows_what_fp32_does_not() -> None:
    one = figures(ratio=1.03)
    assert judge("plan", PLAN, "bf16", measured(one)).equal
    assert not judge("plan", PLAN, "fp32", measured(one)).equal


def test_what_chooses_between_few_values_may_choose_otherwise_now_and_then() -> None:
    one = measured()
    tipped = replace(one, weights=(Figures("w", 1.0, 1.0, 0.02),))
    assert judge("plan", PLAN, "fp32", tipped, "lion").equal
    assert not judge("plan", PLAN, "fp32", tipped, "adamw").equal


@pytest.mark.parametrize(
    "wrong",
    [
        figures(here=math.nan),
        figures(there=math.nan),
        figures(apart=math.nan),
        figures(apart=math.inf),
        Figures("w", 1.0, 0.0, 1.0),
        Figures("w", 1.0, 1.0, 1.0, noise=math.inf),
    ],
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_no_number_is_ever_equal(wrong: Figures, precision: str) -> None:
    assert not judge("plan", PLAN, precision, measured(wrong)).equal


def test_both_zero_is_equal() -> None:
    unused = Figures("expert.7", 0.0, 0.0, 0.0, cosine=0.0)
    assert judge("plan", PLAN, "fp32", measured(unused)).equal


def test_the_worst_comes_first_and_a_resume_allows_nothing() -> None:
    least = Figures("optimizer/exp_avg/w", 1.0, 1.0, 1e-12)
    verdict = judge(
        "plan", PLAN, "fp32", measured(figures("a", 1.1), figures("b", 3.0), resumed=(least,))
    )
    names = [offence.name for offence in verdict.offences]
    assert names == ["b", "a", "optimizer/exp_avg/w"]
    summary = {check.check: check for check in verdict.checks}
    assert (summary["gradient"].worst, summary["gradient"].compared) == ("b", 2)
    assert (summary["resume"].worst, summary["resume"].compared) == ("optimizer/exp_avg/w", 10)


@given(axis=st.sampled_from(sorted(SIZES)), inverse=st.booleans(), there=positive)
def test_a_scaled_gradient_names_what_has_that_size(axis: str, inverse: bool, there: float) -> None:
    factor = 1 / SIZES[axis] if inverse else float(SIZES[axis])
    word = hint(Figures("w", there * factor, there, there * abs(factor - 1)), SIZES)
    named = axis if axis in ("microbatches", "number of ranks") else f"{axis} size"
    assert word.startswith(f"scaled by {'1 / ' if inverse else ''}{SIZES[axis]}")
    assert named in word


@pytest.mark.parametrize(
    ("one", "words"),
    [
        (figures(ratio=1.37), "scaled by 1.37"),
        (figures(ratio=1.003), "a little off"),
        (Figures("w", 1.0, 1.0, 0.06, cosine=0.998), "a little off"),
        (Figures("w", 0.0, 1.0, 1.0, cosine=0.0), "zero"),
        (Figures("w", 1.0, 0.0, 1.0, cosine=0.0), "not zero"),
        (Figures("w", 1.0, 1.0, 1.4, cosine=0.0, permuted=True), "wrong places: swapped shard"),
        (Figures("w", 1.0, 1.0, 1.4, cosine=0.0), "right norm, wrong direction: swapped shard"),
        (Figures("w", 0.6, 1.0, 0.8, cosine=0.6), "partial sum"),
        (Figures("w", 1.0, 1.0, 0.7, cosine=0.75), "a sum over the data or tensor axis"),
        (figures(here=math.nan), "missing"),
        (figures(there=math.nan), "unknown"),
        (figures(apart=math.inf), "not a number"),
    ],
)
def test_each_kind_of_fault_has_its_words(one: Figures, words: str) -> None:
    assert words in hint(one, SIZES)


@pytest.mark.parametrize(
    ("resumed", "words"),
    [
        ((figures("first step after the resume", 4.0),), "did not go on"),
        ((figures(f"loss of step 4{FIRST_RESUMED}", 1.1),), "other data or other weights"),
        (
            (figures("loss of step 5", 1.01), figures("optimizer/exp_avg/w", 1.6)),
            "optimizer state not restored",
        ),
        (
            (figures("loss of step 5", 1.01), figures("optimizer/exp_avg/w", 1.001)),
            "learning rate",
        ),
    ],
)
def test_a_wrong_resume_has_its_words(resumed: tuple[Figures, ...], words: str) -> None:
    assert words in resume_hint(resumed)


def test_a_wrong_weight_at_the_start_comes_before_what_it_led_to() -> None:
    swapped = Figures("up_proj", 1.0, 1.0, 1e-7, cosine=0.0, permuted=True)
    fine = (Figures("step 1", 2.0, 2.0, 0.0),)
    found = Measured((swapped,), (figures("down_proj", 3.0),), fine, fine, (), (), 10)
    offences = judge("plan", PLAN, "fp32", found).offences
    assert [(one.check, one.name) for one in offences] == [
        ("start", "up_proj"),
        ("gradient", "down_proj"),
    ]


def verdict(label: str, equal: bool) -> Verdict:
    return judge(label, PLAN, "fp32", measured(figures(ratio=1.0 if equal else 2.0)))


@pytest.mark.parametrize(
    ("alone_equal", "blamed"),
    [
        ({"one worker": True, "data": True, "tensor": False}, "tensor"),
        ({"one worker": True, "data": False, "tensor": False}, "data and tensor"),
        ({"one worker": False, "data": False, "tensor": True}, "no axis"),
        ({}, "no axis"),
        ({"one worker": True, "data": True, "tensor": True}, "none alone (data, tensor)"),
    ],
)
def test_the_axis_that_fails_alone_is_guilty(alone_equal: dict[str, bool], blamed: str) -> None:
    tried = [verdict(label, equal) for label, equal in alone_equal.items()]
    assert guilty(verdict("whole plan", equal=False), tried).startswith(blamed)
    assert guilty(verdict("whole plan", equal=True), ()) == ""


def test_a_plan_that_did_not_run_is_not_equal() -> None:
    found = did_not_run("data", PLAN, "rank 1: raised")
    assert not found.equal
    assert found.offences[0].hint == "rank 1: raised"


@given(
    st.builds(
        ParallelPlan,
        data=st.integers(1, 4),
        tensor=st.integers(1, 4),
        pipeline=st.integers(1, 4),
        microbatches=st.integers(1, 9),
        zero_stage=st.integers(0, 3),
    )
)
def test_an_axis_alone_keeps_all_but_the_other_axes(plan: ParallelPlan) -> None:
    for axis in plan_axes(plan):
        reduced = alone(plan, axis)
        assert plan_axes(reduced) == [axis]
        assert reduced.world_size == getattr(plan, axis)
        assert (reduced.microbatches, reduced.zero_stage) == (plan.microbatches, plan.zero_stage)
    assert alone(plan, "one worker").world_size == 1


def test_the_experts_axis_brings_the_data_ranks_that_it_lies_on() -> None:
    plan = ParallelPlan(data=4, expert=2, tensor=2)
    assert plan_axes(plan) == ["data", "tensor", "expert"]
    reduced = alone(plan, "expert")
    assert (reduced.data, reduced.expert, reduced.tensor) == (2, 2, 1)
    assert alone(plan, "data").expert == 1


def test_an_axis_that_the_plan_lacks_is_refused() -> None:
    with pytest.raises(SpecError, match="allowed: data, tensor"):
        alone(PLAN, "pipeline")


def test_a_verified_job_is_never_finished_and_so_never_exported() -> None:
    spec = JobSpec.parse(
        {
            "name": "short",
            "model": {"directory": "m"},
            "init": "random",
            "steps": 2,
            "stop_after_step": 1,
            "data": {"kind": "text", "files": ["a.txt"], "sequence_tokens": 8},
            "batch": {"sequences": 1},
            "optim": {"lr": 1e-3},
            "checkpoint": {"resume": "never", "every_steps": 1},
        }
    )
    verified = verified_job(spec)
    assert verified.steps > 5
    assert verified.checkpoint.resume == "auto"
    assert verified.init == "weights"

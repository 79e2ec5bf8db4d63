"""The guard's verdicts: functions of numbers that every rank has alike."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayline.errors import WorkerError
from rayline.spec import GuardSpec
from rayline.train.guard import Guard, Seen, Verdict, judge, remember

FINITE = st.floats(1e-6, 1e6)


def guard(**fields: Any) -> GuardSpec:
    return GuardSpec.parse(fields)


@pytest.mark.parametrize("policy", ["skip", "stop"])
@pytest.mark.parametrize(
    ("loss", "norm", "named"),
    [(math.nan, 1.0, "loss is nan"), (math.inf, 1.0, "loss"), (1.0, math.inf, "gradient norm")],
)
def test_a_value_that_is_not_finite_is_never_applied(
    policy: str, loss: float, norm: float, named: str
) -> None:
    verdict = judge(guard(nonfinite=policy), Seen(), loss, norm)
    assert verdict.action == policy
    assert named in verdict.reason


@settings(deadline=None)
@given(losses=st.lists(FINITE, max_size=30), norms=st.lists(FINITE, max_size=30))
def test_without_a_spike_factor_every_finite_step_is_applied(
    losses: list[float], norms: list[float]
) -> None:
    watching = Guard(guard(window_steps=1))
    assert all(watching.admits(loss, norm) for loss, norm in zip(losses, norms, strict=False))


@settings(deadline=None)
@given(window=st.integers(1, 10), usual=FINITE, factor=st.floats(1.5, 100))
def test_a_spike_is_judged_once_the_window_is_full(
    window: int, usual: float, factor: float
) -> None:
    watching = Guard(guard(spike_factor=factor, window_steps=window))
    for _ in range(window - 1):
        assert watching.admits(usual, usual)
    early = Guard(guard(spike_factor=factor, window_steps=window))
    early.restore(watching.scalars())
    assert early.admits(usual * factor * 2, usual)
    assert watching.admits(usual, usual)
    assert watching.admits(usual * factor * 0.99, usual * factor * 0.99)
    assert not watching.admits(usual, usual * factor * factor * 2)
    assert "gradient norm" in watching.verdict.reason


@settings(deadline=None)
@given(norms=st.lists(FINITE, min_size=1, max_size=30), window=st.integers(1, 30))
def test_the_mean_is_plain_until_the_window_is_full(norms: list[float], window: int) -> None:
    spec, seen, apply = guard(window_steps=window), Seen(), Verdict("apply", "")
    for norm in norms:
        seen = remember(spec, seen, apply, 2.0, norm)
    assert seen.mean_loss == pytest.approx(2.0)
    rounding = 1e-9 * max(norms)
    assert min(norms) - rounding <= seen.mean_norm <= max(norms) + rounding
    if len(norms) <= window:
        assert seen.mean_norm == pytest.approx(sum(norms) / len(norms), abs=rounding)


def test_skipped_steps_leave_the_means_and_are_counted_in_a_row() -> None:
    watching = Guard(guard(nonfinite="skip", max_skips=2))
    watching.admits(1.0, 1.0)
    for step in (2, 3):
        assert not watching.admits(math.nan, 1.0)
        assert "the loss is nan" in watching.enforce(step, None, [])
    assert watching.scalars()["guard_mean_loss"] == 1.0
    assert watching.admits(1.0, 1.0)
    assert watching.enforce(4, None, []) == ""
    assert watching.scalars()["guard_skips"] == 0


def test_too_many_skips_in_a_row_stop_the_job() -> None:
    watching = Guard(guard(nonfinite="skip", max_skips=1))
    assert not watching.admits(1.0, math.nan)
    watching.enforce(7, 3, ["rank 3: gradient of lm_head.weight"])
    assert not watching.admits(1.0, math.nan)
    with pytest.raises(WorkerError) as stopped:
        watching.enforce(8, 3, ["rank 3: gradient of lm_head.weight"])
    assert stopped.value.subject == "step 8"
    assert stopped.value.rank == 3
    assert "1 steps in a row" in str(stopped.value)
    assert "rank 3: gradient of lm_head.weight" in str(stopped.value)


@settings(deadline=None)
@given(
    numbers=st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e6) | st.just(math.nan))),
    cut=st.integers(0, 20),
)
def test_what_it_remembers_goes_through_a_checkpoint(
    numbers: list[tuple[float, float]], cut: int
) -> None:
    spec = guard(nonfinite="skip", spike_factor=3.0, window_steps=4, max_skips=3)
    unbroken, before, after = Guard(spec), Guard(spec), Guard(spec)
    verdicts = []
    for pair in numbers:
        unbroken.admits(*pair)
        verdicts.append(unbroken.verdict)
    for pair in numbers[:cut]:
        before.admits(*pair)
    assert all(math.isfinite(value) for value in before.scalars().values())
    after.restore(before.scalars())
    for pair, verdict in list(zip(numbers, verdicts, strict=True))[cut:]:
        after.admits(*pair)
        assert after.verdict == verdict

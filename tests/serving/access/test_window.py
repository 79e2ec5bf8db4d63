"""What was taken lately: the window against a count by hand, calendars at their turns."""

from __future__ import annotations

import datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayline.serving.access.window import SLOT_S, WINDOW_S, Calendar, SlidingWindow, tally

takes = st.lists(
    st.tuples(st.floats(min_value=0, max_value=40), st.integers(min_value=1, max_value=50)),
    min_size=1,
    max_size=60,
)


@settings(deadline=None)
@given(takes)
def test_a_window_counts_what_is_younger_than_a_minute(steps: list[tuple[float, int]]) -> None:
    window, now_s, taken = SlidingWindow(), 1_000.0, []
    for gap_s, amount in steps:
        now_s += gap_s
        window.take(amount, now_s)
        taken.append((now_s, amount))
        surely = sum(n for at_s, n in taken if at_s > now_s - WINDOW_S)
        perhaps = sum(n for at_s, n in taken if at_s > now_s - WINDOW_S - SLOT_S)
        assert surely <= window.used(now_s) <= perhaps


@settings(deadline=None)
@given(takes, st.integers(min_value=50, max_value=400))
def test_who_waits_as_long_as_told_is_let_in(steps: list[tuple[float, int]], limit: int) -> None:
    window, now_s = SlidingWindow(), 1_000.0
    for gap_s, amount in steps:
        now_s += gap_s
        wait_s = window.wait_s(amount, limit, now_s)
        assert wait_s is not None
        if wait_s:
            assert window.used(now_s) + amount > limit
            now_s += wait_s
        assert window.used(now_s) + amount <= limit
        window.take(amount, now_s)
    reset_s = window.reset_s(now_s)
    assert reset_s is not None
    assert window.used(now_s + reset_s) == 0


@settings(deadline=None)
@given(takes, st.data())
def test_what_is_given_back_is_as_if_never_taken(
    steps: list[tuple[float, int]], data: st.DataObject
) -> None:
    window, other, now_s = SlidingWindow(), SlidingWindow(), 1_000.0
    for gap_s, amount in steps:
        now_s += gap_s
        back = data.draw(st.integers(min_value=0, max_value=amount))
        slot = window.take(amount, now_s)
        window.give_back(back, slot)
        other.take(amount - back, now_s)
        assert window.used(now_s) == other.used(now_s)


def test_a_slot_that_counts_no_more_is_left_alone() -> None:
    window = SlidingWindow()
    old = window.take(5, 100.0)
    window.take(7, 170.0)
    window.give_back(5, old)
    assert window.used(170.0) == 7
    assert window.wait_s(8, 7, 170.0) is None


def test_a_clock_that_goes_back_loses_nothing() -> None:
    window = SlidingWindow()
    window.take(5, 200.0)
    window.take(5, 100.0)
    assert window.used(200.0) == 10


def at_s(text: str) -> float:
    return datetime.datetime.fromisoformat(text).replace(tzinfo=datetime.UTC).timestamp()


@pytest.mark.parametrize(
    ("period", "inside", "wait_s"),
    [
        ("day", "2026-11-26T23:59:30", 30.0),
        ("month", "2026-12-31T23:59:00", 60.0),
        ("month", "2028-02-28T00:00:00", 2 * 86_400.0),
        ("total", "2026-11-26T12:00:00", None),
    ],
)
def test_a_budget_is_new_when_its_period_is(period: str, inside: str, wait_s: float | None) -> None:
    budget, now_s = tally(period), at_s(inside)  # type: ignore[arg-type]
    slot = budget.take(10, now_s)
    assert budget.used(now_s) == 10
    assert budget.wait_s(1, 10, now_s) == wait_s
    budget.give_back(4, slot)
    assert budget.used(now_s) == 6
    if wait_s is not None:
        assert budget.used(now_s + wait_s) == 0
        budget.give_back(4, slot)
        assert budget.used(now_s + wait_s) == 0


def test_more_than_a_budget_never_fits() -> None:
    assert Calendar("day").wait_s(11, 10, 0.0) is None

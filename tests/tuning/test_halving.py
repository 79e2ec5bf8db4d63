"""Rungs, brackets and who goes on, in numbers."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayline.tuning.halving import bracket_shares, brackets, keeps, rungs

costs = st.floats(0, 100)


def test_rungs_multiply_and_stay_below_the_last_step() -> None:
    assert rungs(1, 3, 27) == [1, 3, 9]
    assert rungs(5, 2, 40) == [5, 10, 20]
    assert rungs(5, 2, 40, bracket=2) == [20]
    assert rungs(5, 2, 41) == [5, 10, 20, 40]
    assert rungs(7, 3, 7) == []


@given(st.integers(1, 50), st.integers(2, 5), st.integers(1, 1000), st.integers(0, 4))
def test_every_bracket_begins_a_rung_later(
    grace: int, factor: int, longest: int, bracket: int
) -> None:
    assert rungs(grace, factor, longest)[bracket:] == rungs(grace, factor, longest, bracket)


@pytest.mark.parametrize(
    ("cost", "others", "goes_on"),
    [
        (1.0, [], True),
        (2.0, [1.0], False),
        (1.0, [2.0], True),
        (1.0, [1.0], True),
        (2.0, [1.0, 3.0, 4.0], False),
        (2.0, [1.0, 3.0, 4.0, 5.0, 6.0], True),
        (math.nan, [], False),
        (math.inf, [], False),
        (1.0, [math.inf], True),
    ],
)
def test_one_in_three_goes_on(cost: float, others: list[float], goes_on: bool) -> None:
    assert keeps(cost, others, 3) is goes_on


@given(st.lists(costs, max_size=30), costs, st.integers(2, 5))
def test_the_best_so_far_always_goes_on_and_the_worst_never_once_there_is_another(
    others: list[float], cost: float, factor: int
) -> None:
    assert keeps(min([cost, *others]), others, factor)
    if others:
        assert not keeps(max([cost, *others]) + 1, others, factor)


@given(st.integers(0, 2**32), st.integers(2, 4))
def test_in_the_long_run_about_one_in_so_many_goes_on(seed: int, factor: int) -> None:
    chance = random.Random(seed)
    seen: list[float] = []
    went_on = 0
    for _ in range(300):
        cost = chance.random()
        went_on += keeps(cost, seen, factor)
        seen.append(cost)
    # Early ones are lucky: the best of two, three, ... so far.
    assert 300 / factor * 0.7 < went_on < 300 / factor * 1.3 + 3 * factor


def test_brackets_share_the_trials_as_hyperband_does() -> None:
    # R = 27, eta = 3 of the paper: 27, 12, 6, 4 trials in brackets that begin at 1, 3, 9, 27.
    shares = bracket_shares(1, 3, 27)
    assert shares == pytest.approx([27 / 49, 12 / 49, 6 / 49, 4 / 49])


@given(st.integers(1, 200), st.lists(st.floats(0.01, 1), min_size=1, max_size=5))
def test_each_bracket_has_its_share_of_any_number_of_trials(
    trials: int, weights: list[float]
) -> None:
    shares = [weight / sum(weights) for weight in weights]
    chosen = brackets(trials, shares)
    assert len(chosen) == trials
    assert brackets(trials + 7, shares)[:trials] == chosen
    for bracket, share in enumerate(shares):
        assert abs(chosen.count(bracket) - share * trials) < len(shares)

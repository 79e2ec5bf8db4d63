"""Bounds that hold however often one looks."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayline.serving.rollout.certainty import _log_evidence, rank_bounds, rate_bounds


@given(st.integers(0, 400), st.floats(1, 99), st.sampled_from([0.05, 0.001, 1e-5]))
def test_ranks_are_those_that_the_evidence_leaves(count: int, percent: float, wrong: float) -> None:
    low, high = rank_bounds(count, percent, wrong)
    share = percent / 100
    prior = (5 * share, 5 * (1 - share))
    possible = [
        below
        for below in range(count + 1)
        if _log_evidence(below, count, share, prior) < math.log(1 / wrong)
    ]
    assert (low, high) == (possible[0], possible[-1] + 1)
    assert low <= count * share + 1
    assert high >= count * share


@given(st.integers(0, 300), st.data(), st.sampled_from([0.05, 0.001]))
def test_rates_enclose_what_was_seen_and_narrow(
    count: int, data: st.DataObject, wrong: float
) -> None:
    hits = data.draw(st.integers(0, count))
    low, high = rate_bounds(hits, count, wrong)
    assert 0 <= low <= (hits / count if count else 0)
    assert (hits / count if count else 1) <= high <= 1
    more_low, more_high = rate_bounds(4 * hits, 4 * count, wrong)
    assert more_low >= low
    assert more_high <= high


@pytest.mark.parametrize("percent", [50, 95])
def test_a_percentile_stays_inside_at_every_look(percent: float) -> None:
    wrong, left, lives = 0.05, 0, 400
    for seed in range(lives):
        chance = random.Random(seed)
        # Counting samples below the true percentile is all that the bounds depend on.
        below = 0
        for count in range(1, 301):
            below += chance.random() < percent / 100
            low, high = rank_bounds(count, percent, wrong)
            if not low <= below < high:
                left += 1
                break
    # By chance alone, 5 % of the lives may be outside once: 20, and 3 standard deviations more.
    assert left <= lives * wrong + 13


def test_a_rate_stays_inside_at_every_look() -> None:
    wrong, left, lives = 0.05, 0, 300
    for seed in range(lives):
        chance = random.Random(seed)
        hits = 0
        for count in range(1, 201):
            hits += chance.random() < 0.1
            low, high = rate_bounds(hits, count, wrong)
            if not low <= 0.1 <= high:
                left += 1
                break
    assert left <= lives * wrong + 12


def test_few_samples_bound_nothing_and_many_bound_closely() -> None:
    assert rank_bounds(0, 50, 0.001) == (0, 1)
    assert rank_bounds(5, 50, 0.001) == (0, 6)
    low, high = rank_bounds(10_000, 50, 0.001)
    assert 4750 < low < 5000 < high < 5250
    assert rate_bounds(0, 0, 0.001) == (0, 1)
    assert rate_bounds(8, 8, 0.001)[0] > 0.3

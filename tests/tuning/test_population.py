"""Who goes on from whom, and with which values, in numbers."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayline.spec import PopulationSpec, Range
from rayline.tuning.population import explored, moves, segment_ends

SPACE = {
    "optim.lr": Range(low=1e-5, high=1e-1, log=True),
    "optim.warmup_steps": Range(low=0, high=9, integer=True),
    "optim.schedule": Range(choices=["constant", "linear", "cosine"]),
}
START = {"optim.lr": 1e-3, "optim.warmup_steps": 3, "optim.schedule": "linear"}
specs = st.builds(
    PopulationSpec,
    every_steps=st.just(1),
    quantile=st.floats(0.05, 0.5),
    resample=st.floats(0, 1),
)


def test_generations_end_at_multiples_and_at_the_end() -> None:
    assert segment_ends(4, 10) == [4, 8, 10]
    assert segment_ends(5, 10) == [5, 10]
    assert segment_ends(9, 10) == [9, 10]


def test_the_weakest_quarter_goes_on_from_the_best_quarter() -> None:
    spec = PopulationSpec(every_steps=1)
    costs = dict(enumerate([5.0, 1.0, 8.0, 2.0, 6.0, 7.0, 3.0, 4.0]))
    found = moves(costs, dict.fromkeys(costs, START), SPACE, spec, seed=3, generation=1)
    assert set(found) == {2, 5}
    assert {move.source for move in found.values()} <= {1, 3}


def test_a_member_that_is_no_number_is_replaced_and_never_copied() -> None:
    spec = PopulationSpec(every_steps=1, quantile=0.5)
    costs = {0: math.nan, 1: 2.0, 2: math.inf, 3: 1.0}
    found = moves(costs, dict.fromkeys(costs, START), SPACE, spec, seed=0, generation=1)
    assert set(found) == {0, 2}
    assert all(move.source in (1, 3) for move in found.values())


@given(
    specs,
    st.dictionaries(st.integers(0, 20), st.floats(0, 9), max_size=12),
    st.integers(0, 99),
    st.integers(1, 9),
)
def test_moves_are_the_same_for_the_same_seed_and_only_lead_to_better_members(
    spec: PopulationSpec, costs: dict[int, float], seed: int, generation: int
) -> None:
    params = dict.fromkeys(costs, START)
    found = moves(costs, params, SPACE, spec, seed, generation)
    assert found == moves(costs, params, SPACE, spec, seed, generation)
    assert len(found) <= len(costs) // 2
    for member, move in found.items():
        assert costs[move.source] < costs[member]
        assert move.source not in found


@given(specs, st.integers(0, 2**32))
def test_values_stay_in_their_ranges_and_move(spec: PopulationSpec, seed: int) -> None:
    values: dict[str, Any] = START
    for step in range(10):
        values = explored(values, SPACE, spec, random.Random(seed + step))
        assert 1e-5 <= values["optim.lr"] <= 1e-1
        assert isinstance(values["optim.warmup_steps"], int)
        assert 0 <= values["optim.warmup_steps"] <= 9
        assert values["optim.schedule"] in ("constant", "linear", "cosine")


def test_a_perturbed_number_is_one_factor_away() -> None:
    spec = PopulationSpec(every_steps=1, resample=0, factors=[0.5, 2.0])
    for seed in range(20):
        after = explored(START, SPACE, spec, random.Random(seed))
        assert after["optim.lr"] in (pytest.approx(5e-4), pytest.approx(2e-3))
        assert after["optim.warmup_steps"] in (2, 6)
        assert after["optim.schedule"] in ("constant", "cosine")


def test_a_whole_number_moves_by_one_at_least() -> None:
    spec = PopulationSpec(every_steps=1, resample=0, factors=[0.9, 1.1])
    space = {"optim.warmup_steps": SPACE["optim.warmup_steps"]}
    seen = {
        explored({"optim.warmup_steps": 3}, space, spec, random.Random(seed))["optim.warmup_steps"]
        for seed in range(20)
    }
    assert seen == {2, 4}

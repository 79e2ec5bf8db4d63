"""Optuna asked, told and rebuilt."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from rayline.spec import TuneSpec
from rayline.tuning.journal import DrawRow, EndRow, KnownRow, Row
from rayline.tuning.sampling import Sampling

MakeSearch = Callable[..., TuneSpec]
TWO = {
    "optim.lr": {"low": 1e-4, "high": 1e-1, "log": True},
    "optim.weight_decay": {"low": 0.0, "high": 0.3},
}


def distance(params: dict[str, Any]) -> float:
    return abs(math.log10(params["optim.lr"]) + 2.5) + params.get("optim.weight_decay", 0.0)


def played(sampling: Sampling, trials: int, first: int = 0) -> list[Row]:
    """Trials one after another, with a known loss."""
    rows: list[Row] = []
    for number in range(first, first + trials):
        params = sampling.draw()
        assert params is not None
        drawn = DrawRow(draw=number, trial=number, params=params)
        values = {"loss": distance(params), "tokens_per_s": 1000 * params["optim.lr"]}
        ended = EndRow(trial=number, ending="finished", step=9, values=values)
        for row in (drawn, ended):
            sampling.take(row)
            rows.append(row)
    return rows


def params_of(rows: list[Row]) -> list[dict[str, Any]]:
    return [row.params for row in rows if isinstance(row, DrawRow)]


@pytest.mark.parametrize("search", ["random", "tpe", "optuna", "cmaes", "gp"])
def test_a_seed_draws_the_same_trials_and_another_seed_others(
    make_search: MakeSearch, search: str
) -> None:
    def drawn(seed: int) -> list[dict[str, Any]]:
        return params_of(played(Sampling(make_search(space=TWO, search=search, seed=seed)), 6))

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


@pytest.mark.parametrize("search", ["random", "tpe", "cmaes", "gp"])
def test_a_sampler_rebuilt_from_a_journal_draws_on_as_the_first_would_have(
    make_search: MakeSearch, search: str
) -> None:
    spec = make_search(space=TWO, search=search)
    first = Sampling(spec)
    rows = played(first, 13)
    again = Sampling(spec)
    for row in rows:
        again.take(row)
    assert params_of(played(again, 4, first=13)) == params_of(played(first, 4, first=13))


def test_what_the_journal_says_holds_where_the_sampler_would_draw_otherwise(
    make_search: MakeSearch,
) -> None:
    sampling = Sampling(make_search(space=TWO))
    mine = {"optim.lr": 1e-3, "optim.weight_decay": 0.1}
    sampling.take(DrawRow(draw=0, trial=0, params=mine))
    sampling.take(EndRow(trial=0, ending="finished", step=1, values={"loss": 1.0}))
    assert sampling.draw() is not None


@pytest.mark.parametrize("search", ["tpe", "gp", "cmaes"])
def test_what_learns_finds_the_minimum_better_than_chance(
    make_search: MakeSearch, search: str
) -> None:
    # A Gaussian process takes longer, and learns from less.
    trials, late_ones, seeds = (16, 6, 1) if search == "gp" else (30, 15, 2)

    def mean_of_late(kind: str) -> float:
        late = []
        for seed in range(seeds):
            spec = make_search(space=TWO, search=kind, seed=seed)
            rows = played(Sampling(spec), trials)
            late += [distance(params) for params in params_of(rows)[-late_ones:]]
        return sum(late) / len(late)

    assert mean_of_late(search) < 0.7 * mean_of_late("random")


@pytest.mark.parametrize("search", ["tpe", "cmaes", "gp", "bohb"])
def test_a_warm_start_draws_near_what_was_good_at_once(
    make_search: MakeSearch, search: str
) -> None:
    spec = make_search(space=TWO, search=search)
    cold = Sampling(spec)
    known = []
    for place in range(20):
        params = {"optim.lr": 10 ** (-4 + 3 * place / 19), "optim.weight_decay": 0.015 * place}
        known.append(KnownRow(run_id=f"r{place}", params=params, values={"loss": distance(params)}))

    def mean(sampling: Sampling) -> float:
        found = [distance(params) for params in params_of(played(sampling, 6))]
        return sum(found) / len(found)

    assert mean(Sampling(spec, known)) < mean(cold)


@pytest.mark.parametrize("search", ["random", "tpe", "gp"])
def test_several_objectives_are_learnt_from(make_search: MakeSearch, search: str) -> None:
    spec = make_search(space=TWO, search=search, objectives=["loss", "tokens_per_s"])
    assert len(played(Sampling(spec), 13)) == 26


def test_any_ending_leaves_the_sampler_able_to_go_on(make_search: MakeSearch) -> None:
    sampling = Sampling(make_search())
    for number, (ending, values) in enumerate(
        [("failed", {}), ("finished", {}), ("finished", {"loss": 1.0})]
    ):
        params = sampling.draw()
        assert params is not None
        sampling.take(DrawRow(draw=number, trial=number, params=params))
        sampling.take(EndRow(trial=number, ending=ending, step=2, values=values))  # type: ignore[arg-type]
    params = sampling.draw()
    assert params is not None
    sampling.take(DrawRow(draw=3, trial=None, params=params, refused="memory", reason="much"))
    assert sampling.draw() is not None

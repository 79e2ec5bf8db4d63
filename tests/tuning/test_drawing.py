"""Draws through Ray Tune's Searcher interface, without a cluster."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from ray.tune.search import Searcher

from rayline.errors import PlacementError
from rayline.spec import JobSpec, TuneSpec
from rayline.tuning.drawing import Drawing

MakeSearch = Callable[..., TuneSpec]


def allow(job: JobSpec) -> None:
    """Every job may run."""


def drawing(search: TuneSpec, refuse: Callable[[JobSpec], None] = allow) -> Drawing:
    return Drawing(search, "folder", refuse, lambda draw: draw.params)


def draw_all(source: Drawing, loss_of: Callable[[dict[str, Any]], float]) -> list[dict[str, Any]]:
    """Runs the search to its end with a known loss."""
    drawn = []
    while (params := source.suggest(str(len(drawn)))) != Searcher.FINISHED:
        assert isinstance(params, dict)
        result = {"step": 9, "loss": loss_of(params), "ending": "finished"}
        source.on_trial_result(str(len(drawn)), result)
        source.on_trial_complete(str(len(drawn)), result)
        drawn.append(params)
    return drawn


@pytest.mark.parametrize("kind", ["random", "optuna"])
def test_a_seed_draws_the_same_trials_and_another_seed_others(
    make_search: MakeSearch, kind: str
) -> None:
    def drawn(seed: int) -> list[dict[str, Any]]:
        source = drawing(make_search(trials=5, search=kind, seed=seed))
        return draw_all(source, lambda params: params["optim.lr"])

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    assert len(drawn(1)) == 5


def test_tpe_finds_the_minimum_better_than_chance(make_search: MakeSearch) -> None:
    def distance(params: dict[str, Any]) -> float:
        return abs(math.log10(params["optim.lr"]) + 2.5)

    def mean_of_late(kind: str) -> float:
        late = []
        for seed in range(4):
            source = drawing(make_search(trials=40, search=kind, seed=seed))
            late += [distance(params) for params in draw_all(source, distance)[20:]]
        return sum(late) / len(late)

    assert mean_of_late("optuna") < 0.7 * mean_of_late("random")


def test_what_cannot_run_is_refused_counted_and_never_handed_out(make_search: MakeSearch) -> None:
    def refuse(job: JobSpec) -> None:
        if job.plan.tensor == 2:
            raise PlacementError("plan.tensor", "2 wanted, 1 there", value=2)

    space = {"plan.tensor": {"choices": [1, 2]}, "engine": {"choices": ["native", "deepspeed"]}}
    source = drawing(make_search(trials=12, space=space, search="random"), refuse)
    ran = draw_all(source, lambda params: 1.0)
    assert len(ran) + len(source.infeasible) == 12
    assert ran
    assert all(params["plan.tensor"] == 1 for params in ran)
    assert {trial.status for trial in source.infeasible} == {"infeasible"}
    problems = " ".join(trial.problem for trial in source.infeasible)
    assert "2 wanted, 1 there" in problems
    assert "engine deepspeed" in problems
    numbers = [draw.number for draw in source.draws.values()]
    numbers += [trial.number for trial in source.infeasible]
    assert sorted(numbers) == list(range(12))


@pytest.mark.parametrize(
    "result",
    [
        None,
        {"step": 2, "loss": math.inf, "ending": "failed"},
        {"step": 2, "loss": math.nan, "ending": "finished"},
        {"step": 2, "loss": 1.0},
    ],
)
def test_any_ending_leaves_the_search_able_to_go_on(
    make_search: MakeSearch, result: dict[str, Any] | None
) -> None:
    source = drawing(make_search(trials=3))
    source.suggest("a")
    if result is not None:
        source.on_trial_result("a", result)
    source.on_trial_complete("a", result, error=result is None)
    assert isinstance(source.suggest("b"), dict)

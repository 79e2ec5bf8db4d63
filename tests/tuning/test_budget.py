"""When a search has used up what it may, in numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayline.spec import TuneSpec
from rayline.tuning.budget import money_spent, why_no_more
from rayline.tuning.history import History, Spent
from rayline.tuning.journal import DrawRow, EndRow, ResumedRow, SearchRow, StartRow

MakeSearch = Callable[..., TuneSpec]


@pytest.mark.parametrize(
    ("budget", "spent", "reason"),
    [
        ({}, Spent(1e9, 1e9, 1e9), None),
        ({"worker_hours": 2.0}, Spent(7199, 0, 0), None),
        ({"worker_hours": 2.0}, Spent(7200, 0, 0), "budget.worker_hours of 2"),
        ({"gpu_hours": 1.0}, Spent(7200, 3600, 0), "budget.gpu_hours of 1"),
        ({"wall_hours": 0.5}, Spent(0, 0, 1800), "budget.wall_hours of 0.5"),
        ({"money": 10.0}, Spent(3600, 0, 0), None),
        ({"money": 10.0}, Spent(18000, 0, 0), "budget.money of 10"),
    ],
)
def test_each_bound_by_itself(
    make_search: MakeSearch, budget: dict[str, float], spent: Spent, reason: str | None
) -> None:
    spec = make_search(budget=budget, price_per_worker_hour=2.0)
    told = why_no_more(spec, spent)
    assert told is None if reason is None else told is not None and reason in told
    assert money_spent(spec, Spent(1800, 0, 0)) == 1.0


def history(*rows: Any) -> History:
    first = SearchRow(at_s=0, run_id="r", spec={}, optuna="5")
    draws = [DrawRow(at_s=0, draw=n, trial=n, params={}) for n in range(2)]
    return History.of([first, *draws, *rows])


def test_workers_are_paid_from_the_start_of_a_gang_to_its_end() -> None:
    rows = (
        StartRow(at_s=10, trial=0, workers=4, gpus=2.0),
        StartRow(at_s=20, trial=1, workers=1, gpus=0.5),
        EndRow(at_s=30, trial=0, ending="finished", step=1, values={}),
    )
    assert history(*rows).spent(50) == Spent(worker_s=80 + 30, gpu_s=40 + 15, wall_s=50)


def test_what_a_dead_driver_held_is_paid_until_its_last_word() -> None:
    rows = (
        StartRow(at_s=10, trial=0, workers=2, gpus=0.0),
        StartRow(at_s=15, trial=1, workers=1, gpus=0.0),
        ResumedRow(at_s=1000, trials=2),
        StartRow(at_s=1010, trial=0, workers=2, gpus=0.0),
    )
    assert history(*rows).spent(1020) == Spent(worker_s=10 + 20, gpu_s=0, wall_s=15 + 20)


@given(st.lists(st.floats(0, 100), min_size=4, max_size=4))
def test_what_was_spent_never_shrinks(at_s: list[float]) -> None:
    first, second, third, fourth = sorted(at_s)
    found = history(
        StartRow(at_s=first, trial=0, workers=3, gpus=3.0),
        EndRow(at_s=second, trial=0, ending="failed", step=0, values={}),
    )
    assert found.spent(third).worker_s == pytest.approx(3 * (second - first))
    assert found.spent(fourth).wall_s >= found.spent(third).wall_s

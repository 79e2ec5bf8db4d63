"""Trials ranked as the search ranks them."""

from __future__ import annotations

from datetime import UTC, datetime

from rayline.console.search_views import search_rows, search_view
from rayline.tracking import RunState, RunSummary

NOW = datetime(2026, 11, 27, tzinfo=UTC)


def trial(name: str, state: str, loss: float | None, steps: int = 9, **params: str) -> RunState:
    summary = RunSummary(name, name, "finished", NOW, NOW, "s", steps, loss, "")
    return RunState(summary, None, [], (), params, {"rayline.trial": state})


SEARCH = RunState(
    RunSummary("s", "s", "finished", NOW, NOW, None, None, None, ""),
    None,
    [],
    (),
    {"space.lr.low": "1e-4", "space.lr.high": "1", "space.lr.log": "true", "trials": "4"},
    {"rayline.best_run": "b"},
)
TRIALS = [
    trial("a", "stopped_early", 0.1, 3, lr="0.3", seed="1"),
    trial("b", "finished", 1.0, lr="0.1", seed="2"),
    trial("c", "finished", 2.0, lr="1", seed="3"),
    trial("d", "infeasible", None, 0, lr="x", seed="4"),
    trial("e", "stopped_early", 0.2, 6, lr="0.2", seed="5"),
]


def test_who_went_to_the_end_stands_before_who_was_stopped() -> None:
    view = search_view(SEARCH, TRIALS, ["best.yaml", "report.html"])
    assert [(one.place, one.summary.run_id) for one in view.trials] == [
        (1, "b"),
        (2, "c"),
        (3, "e"),
        (4, "a"),
        (5, "d"),
    ]
    assert (view.fields, view.best_run_id, view.report) == (("lr",), "b", "report.html")
    assert [one.numbers for one in view.trials] == [(0.1,), (1.0,), (0.2,), (0.3,), (None,)]
    assert search_view(SEARCH, TRIALS, ["best.yaml"]).report is None


def test_without_a_space_what_differs_is_shown() -> None:
    bare = RunState(SEARCH.summary, None, [], (), {}, {})
    view = search_view(bare, TRIALS, [])
    assert view.fields == ("lr",)
    assert view.best_run_id == "b"
    assert search_view(bare, [], []).best_run_id is None


def test_a_search_is_what_others_are_below() -> None:
    found = search_rows([one.summary for one in [*TRIALS, SEARCH]])
    assert [(row.summary.run_id, row.trials, row.best_loss) for row in found] == [("s", 5, 0.1)]

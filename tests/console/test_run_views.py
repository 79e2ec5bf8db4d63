"""Curves thinned without losing their course, and rows in their order."""

from __future__ import annotations

import math
from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from rayline.console.plain import plain
from rayline.console.run_views import MEASURES, SHOWN_POINTS, curve, run_rows, thinned
from rayline.tracking import MetricPoint, RunSummary

NOW = datetime(2026, 11, 27, tzinfo=UTC)
POINTS = st.lists(st.floats(-1e6, 1e6), max_size=300).map(lambda values: list(enumerate(values)))


@given(points=POINTS, most=st.integers(4, 80))
def test_what_is_thinned_keeps_its_ends_and_its_extremes(
    points: list[tuple[int, float]], most: int
) -> None:
    kept = thinned(points, most)
    assert len(kept) <= max(most, 0)
    assert [step for step, _ in kept] == sorted({step for step, _ in kept})
    assert set(kept) <= set(points)
    if points:
        assert (kept[0], kept[-1]) == (points[0], points[-1])
        values = [value for _, value in points]
        assert min(value for _, value in kept) == min(values)
        assert max(value for _, value in kept) == max(values)


def test_a_curve_has_one_finite_value_a_step_and_says_how_many_there_were() -> None:
    told = [
        MetricPoint(1, 3.0, 0),
        MetricPoint(2, math.nan, 1),
        MetricPoint(1, 2.5, 2),
        MetricPoint(4, 1.0, 3),
    ]
    found = curve(MEASURES[0], told)
    assert (found.steps, found.values) == ((1, 4), (2.5, 1.0))
    assert (found.recorded, found.last) == (2, 1.0)
    long = [MetricPoint(step, float(step % 7), step) for step in range(100_000)]
    found = curve(MEASURES[0], long)
    assert len(found.steps) <= SHOWN_POINTS
    assert found.recorded == 100_000
    assert curve(MEASURES[0], []).last is None


def summary(run_id: str, parent: str | None = None) -> RunSummary:
    return RunSummary(run_id, run_id, "finished", NOW, None, parent, 1, 2.0, "")


def test_trials_stand_below_their_search() -> None:
    rows = run_rows(
        [summary("t2", "s"), summary("alone"), summary("s"), summary("t1", "s"), summary("x", "?")]
    )
    assert [(row.summary.run_id, row.children) for row in rows] == [
        ("alone", 0),
        ("s", 2),
        ("t2", 0),
        ("t1", 0),
        ("x", 0),
    ]


def test_what_is_sent_is_plain() -> None:
    row = run_rows([summary("a")])[0]
    tree = plain({"row": row, "nan": math.nan, "set": (1, None, True, "x"), 3: NOW})
    assert tree["row"]["summary"]["started_at"] == NOW.timestamp()
    assert (tree["nan"], tree["set"], tree["3"]) == (None, [1, None, True, "x"], NOW.timestamp())

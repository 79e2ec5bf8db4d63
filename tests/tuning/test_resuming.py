"""Which search is gone on with, and whether it may be."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from rayline.errors import SpecError
from rayline.spec import TuneSpec
from rayline.tuning.journal import (
    JOURNAL_FILE,
    ClosedRow,
    DrawRow,
    EndRow,
    Journal,
    Row,
    SearchRow,
)
from rayline.tuning.resuming import find_search, refuse_other, search_folder

MakeSearch = Callable[..., TuneSpec]


def left(folder: Path, spec: TuneSpec, run_id: str, age_s: float, *more: Row) -> None:
    file = search_folder(folder, run_id) / JOURNAL_FILE
    with closing(Journal(file)) as journal:
        first = SearchRow(run_id=run_id, spec=spec.model_dump(mode="json"), optuna="5")
        for row in (first, *more):
            journal.append(row)
    os.utime(file, (1e9 - age_s, 1e9 - age_s))


def ended(trials: int) -> list[Row]:
    rows: list[Row] = []
    for number in range(trials):
        rows.append(DrawRow(draw=number, trial=number, params={"optim.lr": 0.1}))
        rows.append(EndRow(trial=number, ending="finished", step=9, values={"loss": 1.0}))
    return [*rows, ClosedRow(reason="all trials are done")]


def test_the_newest_that_is_not_over_is_gone_on_with(
    make_search: MakeSearch, tmp_path: Path
) -> None:
    spec = make_search()
    left(tmp_path, spec, "aaaaaaaa11", 30)
    left(tmp_path, spec, "bbbbbbbb22", 20)
    left(tmp_path, spec, "cccccccc33", 10, *ended(3))
    assert find_search(tmp_path, None)[1].run_id == "bbbbbbbb22"
    assert find_search(tmp_path, "aaaaaaaa11")[1].run_id == "aaaaaaaa11"
    assert find_search(tmp_path, "cccccc")[1].run_id == "cccccccc33"
    with pytest.raises(SpecError, match="no search of this id"):
        find_search(tmp_path, "dddd")
    with pytest.raises(SpecError, match="start one: rayline tune SPEC"):
        find_search(tmp_path / "absent", None)


def test_a_torn_line_is_left_out_and_any_other_is_refused(
    make_search: MakeSearch, tmp_path: Path
) -> None:
    left(tmp_path, make_search(), "aaaaaaaa11", 0)
    file = tmp_path / "aaaaaaaa" / JOURNAL_FILE
    whole = file.read_text()
    file.write_text(whole + '{"kind": "dra')
    assert len(find_search(tmp_path, None)[2]) == 1
    file.write_text(whole + '{"kind": "dream"}\n')
    with pytest.raises(SpecError, match=r"line 2.*no line of a search's journal"):
        find_search(tmp_path, None)


def test_only_what_makes_a_search_longer_may_change(
    make_search: MakeSearch, tmp_path: Path
) -> None:
    spec = make_search()
    left(tmp_path, spec, "aaaaaaaa11", 0)
    _, first, rows = find_search(tmp_path, None)
    assert refuse_other(spec, first, rows) is None
    more = spec.changed({"trials": 9, "concurrent": 2, "budget.wall_hours": 1.0})
    assert refuse_other(more, first, rows) is None
    for change in ({"seed": 1}, {"job.optim.lr": 0.5}, {"search": "random"}):
        with pytest.raises(SpecError, match="is not what the search began with"):
            refuse_other(spec.changed(change), first, rows)


def test_a_search_that_is_over_takes_more_trials_and_nothing_else(
    make_search: MakeSearch, tmp_path: Path
) -> None:
    spec = make_search()
    left(tmp_path, spec, "aaaaaaaa11", 0, *ended(3))
    _, first, rows = find_search(tmp_path, "aaaaaaaa")
    with pytest.raises(SpecError, match="is over: all trials are done"):
        refuse_other(spec, first, rows)
    with pytest.raises(SpecError, match="fewer than were begun"):
        refuse_other(spec.changed({"trials": 2}), first, rows)
    assert refuse_other(spec.changed({"trials": 4}), first, rows) is None

"""The board of a search: lines in a pipe, a table where a person watches."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from rayline.cli.board import SearchBoard, ordered
from rayline.cli.screen import Screen
from rayline.spec import TuneSpec
from rayline.tuning import TrialReport

SEARCH = TuneSpec.parse(
    {
        "name": "lr",
        "trials": 3,
        "objectives": ["loss", "tokens_per_s"],
        "space": {"optim.lr": {"low": 1e-4, "high": 1e-2}},
        "job": {
            "name": "best",
            "model": {"directory": "model"},
            "steps": 9,
            "data": {"kind": "text", "files": ["a.txt"], "sequence_tokens": 16},
            "batch": {"sequences": 4},
            "optim": {"lr": 1e-3},
        },
    }
)


def report(trial: int, step: int, loss: float, **more: Any) -> TrialReport:
    values = {"loss": loss, "tokens_per_s": 1234.5}
    return TrialReport(trial, 3, step, loss, values, {"optim.lr": 0.00123456}, **more)


def test_a_pipe_gets_a_line_now_and_then_and_one_for_each_end(
    capsys: pytest.CaptureFixture[str],
) -> None:
    now_s = iter([0.0, 0.0, 0.1, 5.0])
    with SearchBoard(Screen(json_wanted=False), SEARCH, lambda: next(now_s)) as board:
        board(report(0, 1, 3.0))
        board(report(0, 2, 2.5))
        board(report(0, 3, 2.0))
        board(report(0, 3, 2.0, status="stopped_early", problem="not among the best"))
    assert capsys.readouterr().out.splitlines() == [
        "trial 0 of 3  step 1/9  loss 3.0000  tokens_per_s 1,234",
        "trial 0 of 3  step 3/9  loss 2.0000  tokens_per_s 1,234",
        "trial 0 of 3  stopped early: not among the best  loss 2.0000  tokens_per_s 1,234",
    ]


def test_a_person_sees_who_runs_and_who_is_best() -> None:
    board = SearchBoard(Screen(json_wanted=False), SEARCH, lambda: 0.0)
    board(report(0, 9, 2.0, status="finished"))
    board(report(1, 9, 1.0, status="finished"))
    board(report(2, 4, 5.0, refused=7))
    console = Console(file=io.StringIO(), width=100)
    console.print(board.picture())
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "3 of 3 trials: 1 running, 2 finished, 0 stopped early, 0 failed, 7 draws" in shown
    assert "optim.lr=0.00123" in shown
    lines = [line for line in shown.splitlines() if "/9" in line]
    assert ["4/9" in lines[0], "1" in lines[1], "2" in lines[2]] == [True, True, True]


def test_those_that_run_come_first_then_the_best() -> None:
    reports = [
        report(0, 9, 2.0, status="finished"),
        report(1, 9, 1.0, status="finished"),
        report(2, 4, 5.0),
        TrialReport(3, 3, 0, float("nan"), status="failed"),
    ]
    assert [one.trial for one in ordered(reports, "loss", 1.0)] == [2, 1, 0, 3]
    assert [one.trial for one in ordered(reports, "loss", -1.0)] == [2, 0, 1, 3]

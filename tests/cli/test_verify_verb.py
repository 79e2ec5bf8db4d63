"""rayline verify as users run it: what it says, how it ends, what it leaves."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from rayline.cli import run

if TYPE_CHECKING:
    from conftest import RunningCommand

SPECS = Path(__file__).resolve().parents[2] / "jobs" / "specs"
Command = Callable[[list[str], Path], tuple[int, str, str]]
StartCommand = Callable[[list[str], Path], "RunningCommand"]


def words(spec: str, *more: str) -> list[str]:
    model = f"model.directory={SPECS.parents[1]}/examples/models/tiny"
    return ["verify", str(SPECS / spec), "--set", model, *more]


def test_a_dry_run_says_what_would_be_made_small(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(words("tiny-3d.yaml", "--dry-run", "--json")) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["world_size"] == 8
    assert "hidden_size 128 -> 32" in document["changes"]
    assert document["tried_after_a_difference"] == {
        "one worker": "one worker",
        "pipeline": "pipeline 2",
        "data": "data 2",
        "tensor": "tensor 2",
    }


def test_one_axis_is_reduced_to_that_axis(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(words("tiny-3d.yaml", "--dry-run", "--json", "--axis", "pipeline")) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["world_size"], document["label"]) == (2, "pipeline")


def test_an_axis_that_the_plan_lacks_ends_with_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(words("quickstart.yaml", "--axis", "tensor")) == 2
    said = capsys.readouterr().err
    assert "--axis" in said
    assert "allowed: data" in said


@pytest.mark.dist
def test_an_equal_plan_ends_with_code_0_and_one_document(tmp_path: Path, command: Command) -> None:
    code, shown, said = command(words("quickstart.yaml", "--json"), tmp_path)
    assert code == 0, said
    document = json.loads(shown)
    assert document["equal"] is True
    assert document["error"] is None
    checks = {check["check"]: check for check in document["verdict"]["checks"]}
    assert checks["gradient"]["compared"] == checks["weights"]["compared"] == 21
    assert checks["gradient"]["error"] < 1e-5
    assert checks["resume"] == {
        "check": "resume",
        "compared": 10 + 3 * 21,
        "worst": "",
        "error": 0.0,
        "allowed": 0.0,
    }
    assert "whole plan: data 2, 2 processes" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.dist
def test_interrupted_it_leaves_no_process(tmp_path: Path, start_command: StartCommand) -> None:
    running = start_command(words("quickstart.yaml"), tmp_path)
    assert running.process.stdout is not None
    for line in running.process.stdout:
        if line.startswith("whole plan:"):
            break
    running.process.send_signal(signal.SIGINT)
    code, _, said = running.finish()
    assert code == 130, said
    assert "Traceback" not in said

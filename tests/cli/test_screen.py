"""What a pipe and a program get to read."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from rayline.cli.screen import Screen, duration_text, plain, plain_table, size_text
from rayline.spec import ModelRef, ParallelPlan


@dataclass(frozen=True)
class Outcome:
    model: ModelRef
    directory: Path
    losses: tuple[float, ...]


def test_json_is_the_only_thing_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    screen = Screen(json_wanted=True)
    screen.say("on the way")
    screen.table(["name"], [["demo"]])
    screen.result(Outcome(ModelRef(registry="bot@latest"), Path("runs/x"), (1.0, 0.5)))
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {
        "model": {"hub": None, "directory": None, "run": None, "registry": "bot@latest"},
        "directory": "runs/x",
        "losses": [1.0, 0.5],
    }
    assert "on the way" in captured.err


def test_without_json_the_result_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    Screen(json_wanted=False).result({"a": 1})
    assert capsys.readouterr().out == ""


def test_words_in_brackets_are_not_taken_for_markup(capsys: pytest.CaptureFixture[str]) -> None:
    Screen(json_wanted=False).say("data.files [red] [/]")
    assert capsys.readouterr().out == "data.files [red] [/]\n"


def test_a_table_in_a_pipe_is_aligned_and_never_cut() -> None:
    long = "x" * 300
    assert plain_table(["name", "loss"], [["a", "1.0"], [long, "2.0"]]) == [
        f"name{' ' * 296}  loss",
        f"a{' ' * 299}  1.0",
        f"{long}  2.0",
    ]


def test_plain_reaches_into_specs_and_containers() -> None:
    assert plain({"plan": [ParallelPlan(data=2)], "where": Path("a")})["plan"][0]["data"] == 2


@pytest.mark.parametrize(
    ("size_bytes", "text"), [(12, "12 B"), (2048, "2.0 KiB"), (1.5 * 1024**3, "1.5 GiB")]
)
def test_sizes(size_bytes: float, text: str) -> None:
    assert size_text(size_bytes) == text


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (65, "1:05"), (3723, "1:02:03")])
def test_durations(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text

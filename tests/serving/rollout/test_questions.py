"""The evaluation set: what its file may say, and how answers are scored."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rayline.errors import SpecError
from rayline.serving.rollout.questions import Question, read_questions, score


def written(folder: Path, *lines: object) -> str:
    file = folder / "questions.jsonl"
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    file.write_text("\n".join(texts))
    return str(file)


def test_a_file_is_read_line_by_line(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Capital of France?"}]
    file = written(
        tmp_path,
        {"messages": turns, "expected": "Paris"},
        "",
        {"prompt": "2 + 2 =", "expected": "4", "max_tokens": 3},
    )
    chat, text = read_questions(file)
    assert chat == Question(turns, "Paris")
    assert text.body("bot") == {
        "model": "bot",
        "prompt": "2 + 2 =",
        "max_tokens": 3,
        "temperature": 0.0,
    }
    assert chat.body("bot")["messages"] == turns


def test_the_score_is_the_share_that_is_as_expected() -> None:
    questions = [Question("a", "x"), Question("b", "y"), Question("c", "z"), Question("d", "w")]
    assert score(questions, ["it is x.", "Y", "", "w"]) == 0.5


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", "line 2: not JSON"),
        ([1], "line 2: not a question"),
        ({"prompt": "a", "expected": "b", "answer": 1}, "line 2: not a question"),
        ({"expected": "b"}, "either messages or a prompt"),
        ({"prompt": "a", "messages": [], "expected": "b"}, "either messages or a prompt"),
        ({"prompt": "a"}, "says nothing of the answer"),
        ({"prompt": "a", "expected": ""}, "says nothing of the answer"),
        ({"prompt": "a", "expected": "b", "max_tokens": True}, "no number of tokens"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: object, problem: str) -> None:
    good = {"prompt": "a", "expected": "b"}
    with pytest.raises(SpecError, match=problem):
        read_questions(written(tmp_path, good, line))


def test_an_empty_file_and_none_at_all_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="number of questions"):
        read_questions(written(tmp_path, ""))
    with pytest.raises(SpecError, match="no such file"):
        read_questions(str(tmp_path / "missing"))

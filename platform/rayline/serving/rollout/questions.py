"""The evaluation set of a rollout: questions whose answers have to contain something."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayline.errors import SpecError

MOST_QUESTIONS = 1000
"""They are kept with the version and asked one after another: more belongs in a job of its own."""
_ANSWER_TOKENS = 64
_KEYS = ("messages", "prompt", "expected", "max_tokens")
_FIELD = "rollout.evaluation"


@dataclass(frozen=True, slots=True)
class Question:
    """One line of the file."""

    asked: str | list[dict[str, Any]]
    """A text to complete, or the turns of a chat."""
    expected: str
    """What the answer has to contain, in this writing."""
    max_tokens: int = _ANSWER_TOKENS

    def body(self, model: str) -> dict[str, Any]:
        """The request, answered greedily."""
        kind = "prompt" if isinstance(self.asked, str) else "messages"
        settings = {"max_tokens": self.max_tokens, "temperature": 0.0}
        return {"model": model, kind: self.asked, **settings}

    def is_met_by(self, answer: str) -> bool:
        """Whether an answer is as expected."""
        return self.expected in answer


def read_questions(path: str) -> tuple[Question, ...]:
    """The questions of a file of JSON lines. Called by the driver. Raises SpecError naming the line
    that is wrong."""
    file = Path(path)
    if not file.is_file():
        raise SpecError(_FIELD, "no such file", value=path)
    lines = file.read_text(encoding="utf-8").splitlines()
    found = tuple(_question(line, place) for place, line in enumerate(lines, 1) if line.strip())
    if not 0 < len(found) <= MOST_QUESTIONS:
        raise SpecError(
            _FIELD,
            "not a number of questions that can be asked",
            value=len(found),
            allowed=f"1 to {MOST_QUESTIONS}",
        )
    return found


def score(questions: Sequence[Question], answers: Sequence[str]) -> float:
    """Share of the questions that were answered as expected, 0 to 1."""
    met = sum(one.is_met_by(answer) for one, answer in zip(questions, answers, strict=True))
    return met / len(questions)


def _question(line: str, place: int) -> Question:
    where = f"{_FIELD}, line {place}"
    try:
        tree = json.loads(line)
    except ValueError:
        raise SpecError(where, "not JSON", value=line[:80]) from None
    if not isinstance(tree, dict) or not set(tree) <= set(_KEYS):
        raise SpecError(where, "not a question", value=line[:80], allowed=", ".join(_KEYS))
    asked = tree.get("messages", tree.get("prompt"))
    if ("messages" in tree) == ("prompt" in tree) or not asked:
        raise SpecError(where, "wants either messages or a prompt", value=line[:80])
    expected, most = tree.get("expected"), tree.get("max_tokens", _ANSWER_TOKENS)
    if not isinstance(expected, str) or not expected:
        raise SpecError(where, "says nothing of the answer", allowed="expected: a text")
    if type(most) is not int or most < 1:
        raise SpecError(where, "max_tokens is no number of tokens", value=most)
    return Question(asked, expected, most)

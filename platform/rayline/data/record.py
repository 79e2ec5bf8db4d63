"""Records: one chat or one passage, from the tree of plain values that a line or row holds.

Whatever is wrong is named by its place: the field of the spec, the file and the line.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from rayline.errors import SpecError

ROLES = ("system", "user", "assistant")
_MESSAGE_KEYS = {"role", "content"}
_CHAT_FORM = '{"messages": [{"role": "user", "content": "..."}, ...]}'


@dataclass(frozen=True, slots=True)
class Place:
    """One line or row of one of the spec's files."""

    field: str
    """Which list of the job's the file stands in, such as data.files."""
    index: int
    """Place of the file in that list, from 0."""
    file: str
    line: int
    """From 1, as editors count."""
    unit: Literal["line", "row"] = "line"
    """Files of text have lines, tables have rows."""

    def __str__(self) -> str:
        return f"{self.field}[{self.index}] ({self.file}), {self.unit} {self.line}"


@dataclass(frozen=True, slots=True)
class Message:
    """What one side said in one turn."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Chat:
    """One conversation: system first where there is one, then a user, an assistant somewhere."""

    place: Place
    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Passage:
    """One document of plain text."""

    place: Place
    text: str


def chat_of(place: Place, tree: Mapping[str, Any]) -> Chat:
    """The chat under the key messages. Raises SpecError."""
    if "messages" not in tree:
        raise SpecError(str(place), "has no key messages", value=sorted(tree), allowed=_CHAT_FORM)
    return Chat(place, _messages(place, tree["messages"]))


def passage_of(place: Place, tree: Mapping[str, Any]) -> Passage:
    """The passage under the key text. Raises SpecError."""
    if "text" not in tree:
        raise SpecError(
            str(place), "has no key text", value=sorted(tree), allowed='{"text": "..."}'
        )
    text = _text(place, "text", tree["text"])
    if not text:
        raise SpecError(str(place), "text is empty", fix=f"remove the {place.unit}")
    return Passage(place, text)


def object_of(place: Place, line: str) -> dict[str, Any]:
    """The JSON object that a line is. Raises SpecError."""
    try:
        tree = json.loads(line)
    except (ValueError, RecursionError) as wrong:
        reason = (
            f"{wrong.msg} at column {wrong.colno}"
            if isinstance(wrong, json.JSONDecodeError)
            else str(wrong)
        )
        raise SpecError(
            str(place),
            f"is not JSON: {reason}",
            value=brief(line),
            allowed="one JSON object on each line",
        ) from None
    if not isinstance(tree, dict):
        raise SpecError(
            str(place),
            "is JSON, but no object",
            value=brief(line),
            allowed="one JSON object on each line",
        )
    return tree


def _messages(place: Place, tree: Any) -> tuple[Message, ...]:
    if not isinstance(tree, list) or not tree:
        raise SpecError(
            str(place), "messages is no list of messages", value=brief(tree), allowed=_CHAT_FORM
        )
    messages = tuple(_message(place, number, item) for number, item in enumerate(tree))
    roles = [message.role for message in messages]
    if "system" in roles[1:]:
        raise SpecError(
            f"{place}, messages[{roles.index('system', 1)}]", "a system message comes first or not"
        )
    opening = roles[1] if roles[0] == "system" and len(roles) > 1 else roles[0]
    if opening != "user":
        raise SpecError(
            str(place), "the first to speak must be the user", value=opening, allowed="user"
        )
    if "assistant" not in roles:
        raise SpecError(
            str(place),
            "no assistant speaks, so there is nothing to learn",
            value=roles,
            fix=f"add the answer, or remove the {place.unit}",
        )
    return messages


def _message(place: Place, number: int, tree: Any) -> Message:
    subject = f"{place}, messages[{number}]"
    if not isinstance(tree, dict) or not _MESSAGE_KEYS.issubset(tree):
        raise SpecError(
            subject,
            "is no message",
            value=brief(tree),
            allowed='{"role": "...", "content": "..."}',
        )
    if more := sorted(set(tree) - _MESSAGE_KEYS):
        raise SpecError(
            subject,
            "has keys that would be lost: only words are trained on",
            value=more,
            allowed="role, content",
        )
    if tree["role"] not in ROLES:
        raise SpecError(
            f"{subject}.role", "unknown role", value=tree["role"], allowed=", ".join(ROLES)
        )
    content = _text(place, f"messages[{number}].content", tree["content"])
    if tree["role"] == "assistant" and not content.strip():
        raise SpecError(f"{subject}.content", "the assistant says nothing", value=content)
    return Message(tree["role"], content)


def _text(place: Place, key: str, value: Any) -> str:
    if not isinstance(value, str):
        raise SpecError(f"{place}, {key}", "is no text", value=brief(value), allowed="a string")
    try:
        value.encode()
    except UnicodeEncodeError as wrong:
        raise SpecError(
            f"{place}, {key}",
            "holds half a character (a lone surrogate), which no tokenizer can read",
            value=value[wrong.start : wrong.start + 1],
        ) from None
    return value


def brief(value: Any) -> Any:
    """What an error shows of a value that may be very long."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return value if len(text) <= 80 else text[:77] + "..."

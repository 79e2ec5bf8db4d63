"""Sources: files of chats or of plain text, read line by line and refused where they are wrong.

Nothing here needs torch or a tokenizer, so the driver checks every line of the data before a
worker is started, and the workers read it by the same rules. Whatever is wrong is named by its
place: the field of the spec, the file and the line.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayline.errors import SpecError
from rayline.spec import DataSpec

TRAINING_FILES = "data.files"
"""The field of a job that names its training files; errors begin with it."""
HELD_OUT_FILES = "evaluation.files"
"""The one that names the files it is measured on."""
ROLES = ("system", "user", "assistant")
_MESSAGE_KEYS = {"role", "content"}
_SUFFIXES = {"chat": (".jsonl",), "text": (".jsonl", ".txt")}
_CHAT_FORM = '{"messages": [{"role": "user", "content": "..."}, ...]}'


@dataclass(frozen=True, slots=True)
class Place:
    """One line of one of the spec's files."""

    field: str
    """Which list of the job's the file stands in, such as data.files."""
    index: int
    """Place of the file in that list, from 0."""
    file: str
    line: int
    """From 1, as editors count."""

    def __str__(self) -> str:
        return f"{self.field}[{self.index}] ({self.file}), line {self.line}"


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


def check_files(spec: DataSpec, field: str = TRAINING_FILES) -> int:
    """Read every line of every file; returns how many chats or passages there are.

    Called on the driver, before any worker starts. `field` is where the job names the files.
    Raises SpecError naming file and line.
    """
    lines = read_chats(spec, field) if spec.kind == "chat" else read_passages(spec, field)
    return sum(1 for _ in lines)


def check_tokenizer(spec: DataSpec, directory: Path) -> None:
    """Refuse a model folder without a tokenizer, or, for chats, without a chat template.

    Called on the driver. It looks at names and JSON only; whether the tokenizer can be loaded
    shows where it is. Raises SpecError.
    """
    if not any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise SpecError(
            f"model ({directory})",
            "holds no tokenizer",
            allowed="a folder with tokenizer.json",
            fix="save the model's tokenizer beside its weights",
        )
    if spec.kind == "chat" and not _names_chat_template(directory):
        raise no_chat_template(directory)


def no_chat_template(directory: Path) -> SpecError:
    """The error for data.kind chat with a tokenizer that can't write a chat as text."""
    return SpecError(
        "data.kind",
        f"the tokenizer in {directory} has no chat template, so a chat can't become text",
        value="chat",
        allowed="text, or a model whose tokenizer has a chat template",
        fix="use the model's instruct variant, or --set data.kind=text with files of plain text",
    )


def read_chats(spec: DataSpec, field: str = TRAINING_FILES) -> Iterator[Chat]:
    """The chats of all files, in order. Raises SpecError at the first line that is wrong."""
    for place, line in _lines(spec, field):
        tree = _object(place, line)
        if "messages" not in tree:
            raise SpecError(
                str(place), "has no key messages", value=sorted(tree), allowed=_CHAT_FORM
            )
        yield Chat(place, _messages(place, tree["messages"]))


def read_passages(spec: DataSpec, field: str = TRAINING_FILES) -> Iterator[Passage]:
    """The passages of all files, in order. Raises SpecError at the first line that is wrong."""
    for place, line in _lines(spec, field):
        if place.file.endswith(".txt"):
            yield Passage(place, line)
            continue
        tree = _object(place, line)
        if "text" not in tree:
            raise SpecError(
                str(place), "has no key text", value=sorted(tree), allowed='{"text": "..."}'
            )
        text = _text(place, "text", tree["text"])
        if not text:
            raise SpecError(str(place), "text is empty", fix="remove the line")
        yield Passage(place, text)


def _lines(spec: DataSpec, field: str) -> Iterator[tuple[Place, str]]:
    """Every line that isn't blank, without its line end."""
    for index, name in enumerate(spec.files):
        file = _file(spec, field, index)
        blank = True
        try:
            with file.open("rb") as stream:
                for number, raw in enumerate(stream, start=1):
                    place = Place(field, index, name, number)
                    line = _decoded(place, raw)
                    if line.strip():
                        blank = False
                        yield place, line
        except OSError as wrong:
            raise SpecError(
                f"{field}[{index}] ({name})", f"can't be read: {wrong.strerror}"
            ) from None
        if blank:
            raise SpecError(f"{field}[{index}] ({name})", "is empty", fix=f"remove it from {field}")


def _file(spec: DataSpec, field: str, index: int) -> Path:
    subject, file = f"{field}[{index}]", Path(spec.files[index])
    if not file.exists():
        raise SpecError(
            subject,
            "no such file",
            value=spec.files[index],
            fix=f"paths are relative to the working directory, {Path.cwd()}",
        )
    if not file.is_file():
        raise SpecError(subject, "is not a file", value=spec.files[index])
    if file.suffix not in _SUFFIXES[spec.kind]:
        raise SpecError(
            subject,
            f"data.kind {spec.kind} is not read from a file of this kind",
            value=spec.files[index],
            allowed=" or ".join(_SUFFIXES[spec.kind]),
        )
    return file


def _decoded(place: Place, raw: bytes) -> str:
    # Some editors put a byte order mark in front of the first line; it is no text.
    encoding = "utf-8-sig" if place.line == 1 else "utf-8"
    try:
        return raw.decode(encoding).rstrip("\r\n")
    except UnicodeDecodeError as wrong:
        raise SpecError(
            str(place),
            f"is not UTF-8 text at byte {wrong.start + 1} of the line",
            value=raw[wrong.start : wrong.start + 1],
            fix="convert the file, such as with iconv -t utf-8",
        ) from None


def _object(place: Place, line: str) -> dict[str, Any]:
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
            value=_brief(line),
            allowed="one JSON object on each line",
        ) from None
    if not isinstance(tree, dict):
        raise SpecError(
            str(place),
            "is JSON, but no object",
            value=_brief(line),
            allowed="one JSON object on each line",
        )
    return tree


def _messages(place: Place, tree: Any) -> tuple[Message, ...]:
    if not isinstance(tree, list) or not tree:
        raise SpecError(
            str(place), "messages is no list of messages", value=_brief(tree), allowed=_CHAT_FORM
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
            fix="add the answer, or remove the line",
        )
    return messages


def _message(place: Place, number: int, tree: Any) -> Message:
    subject = f"{place}, messages[{number}]"
    if not isinstance(tree, dict) or not _MESSAGE_KEYS.issubset(tree):
        raise SpecError(
            subject,
            "is no message",
            value=_brief(tree),
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
        raise SpecError(f"{place}, {key}", "is no text", value=_brief(value), allowed="a string")
    try:
        value.encode()
    except UnicodeEncodeError as wrong:
        raise SpecError(
            f"{place}, {key}",
            "holds half a character (a lone surrogate), which no tokenizer can read",
            value=value[wrong.start : wrong.start + 1],
        ) from None
    return value


def _names_chat_template(directory: Path) -> bool:
    if any((directory / name).is_file() for name in ("chat_template.jinja", "chat_template.json")):
        return True
    try:
        config = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(config.get("chat_template"))


def _brief(value: Any) -> Any:
    """What an error shows of a value that may be very long."""
    text = value if isinstance(value, str) else json.dumps(value)
    return value if len(text) <= 80 else text[:77] + "..."

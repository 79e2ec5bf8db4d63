"""What stands in a batch's two files, in OpenAI's batch format.

One request a line: {"custom_id", "method": "POST", "url", "body"}. One answer a line, in whatever
order they come: {"id", "custom_id", "response": {"status_code", "request_id", "body"}, "error"},
`error` null where the request was answered.

Source: OpenAI API reference, "Batch", "The request input object" and "The request output object".
"""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NoReturn

from rayline.errors import SpecError
from rayline.serving.requests import ROUTES, RefusedError, Route, Tree, read_json
from rayline.spec import EngineSpec, RequestLimits

_KEYS = ("custom_id", "method", "url", "body")
_LEFT_OUT = ("tokenize", "detokenize")
URLS: dict[str, Route] = {
    entry.path: entry.route
    for entry in ROUTES
    if entry.route is not None and entry.route not in _LEFT_OUT
}
"""Where a line's request may go."""
MAX_ID_CHARACTERS = 512
_ANSWERED: dict[str, tuple[Route, ...]] = {
    "generate": ("chat", "completions", "responses"),
    "embed": ("embeddings",),
    "score": ("score", "rerank"),
}
"""What an engine with each task answers."""


@dataclass(frozen=True, slots=True)
class BatchLine:
    """One request, and where it stands in its file. The body is read when it is asked."""

    number: int
    """Of the line, from 1."""
    custom_id: str
    url: str
    offset_bytes: int
    size_bytes: int

    @property
    def route(self) -> Route:
        """Which engine's route it is."""
        return URLS[self.url]


@dataclass(frozen=True, slots=True)
class BatchAnswer:
    """What came of one request."""

    custom_id: str
    status: int
    """HTTP status."""
    request_id: str
    body: Tree
    """The answer, or the server's own error."""

    @property
    def failed(self) -> bool:
        """Whether the request was refused, or failed on its way."""
        return not 200 <= self.status < 300

    def to_line(self) -> bytes:
        """The answer as its line of the output file."""
        error = None
        if self.failed:
            said = self.body.get("error")
            said = said if isinstance(said, dict) else {}
            error = {
                "code": said.get("code") or f"http_{self.status}",
                "message": said.get("message") or f"HTTP {self.status}",
            }
        tree = {
            "id": f"batch_req_{uuid.uuid4().hex}",
            "custom_id": self.custom_id,
            "response": {
                "status_code": self.status,
                "request_id": self.request_id,
                "body": self.body,
            },
            "error": error,
        }
        return json.dumps(tree, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


class BatchFile:
    """A file of requests, every line of which was found to be one."""

    def __init__(self, path: Path, lines: list[BatchLine]) -> None:
        self.path = path
        self.lines = lines

    @staticmethod
    def read(path: Path, limits: RequestLimits) -> BatchFile:
        """Look through the file. Raises SpecError naming the first line that is wrong: no JSON
        object, a key that is missing or unknown, another method or url than there is, a stream, a
        custom_id that another line has."""
        try:
            with path.open("rb") as stream:
                lines = _read_lines(path, stream, limits)
        except OSError as wrong:
            raise SpecError(str(path), f"cannot be read: {wrong.strerror}") from None
        if not lines:
            raise SpecError(str(path), "holds no request")
        return BatchFile(path, lines)

    def bodies(self, lines: list[BatchLine]) -> list[Tree]:
        """The bodies of these lines, read now."""
        with self.path.open("rb") as stream:
            return [_body(stream, line) for line in lines]


def check_task(file: BatchFile, engine: EngineSpec) -> None:
    """Refuse lines that an engine of this task does not answer. Raises SpecError."""
    if engine.split is not None:
        raise SpecError(
            "engine.split", "has no use in a batch, where nobody waits", fix="remove it"
        )
    answered = _ANSWERED[engine.task]
    for line in file.lines:
        if line.route not in answered:
            raise SpecError(
                f"{file.path}, line {line.number}",
                f"asks {line.url}, which task {engine.task} does not answer",
                allowed=", ".join(url for url, route in URLS.items() if route in answered),
                fix="another engine.task, or a batch for each kind of request",
            )


def _body(stream: BinaryIO, line: BatchLine) -> Tree:
    stream.seek(line.offset_bytes)
    body: Tree = json.loads(stream.read(line.size_bytes))["body"]
    return body


def _read_lines(path: Path, stream: BinaryIO, limits: RequestLimits) -> list[BatchLine]:
    lines: list[BatchLine] = []
    seen: dict[str, int] = {}
    offset = 0
    for number, text in enumerate(stream, start=1):
        if text.strip():
            line = _read_line(path, number, offset, text, limits)
            if line.custom_id in seen:
                _wrong(
                    path,
                    number,
                    f"custom_id {line.custom_id!r} stands in line {seen[line.custom_id]}, too",
                    "give each request an id of its own",
                )
            seen[line.custom_id] = number
            lines.append(line)
        offset += len(text)
    return lines


def _read_line(
    path: Path, number: int, offset: int, text: bytes, limits: RequestLimits
) -> BatchLine:
    try:
        tree = read_json(text, limits)
    except RefusedError as wrong:
        what = wrong.refusal.message.replace("The body", "The line")
        _wrong(path, number, what.rstrip("."))
    for key in _KEYS:
        if key not in tree:
            _wrong(path, number, f"has no {key!r}", f"a line holds {', '.join(_KEYS)}")
    unknown = sorted(set(tree) - set(_KEYS))
    if unknown:
        _wrong(path, number, f"holds {unknown[0]!r}", f"a line holds {', '.join(_KEYS)}")
    custom_id, method, url, body = (tree[key] for key in _KEYS)
    if not isinstance(custom_id, str) or not 0 < len(custom_id) <= MAX_ID_CHARACTERS:
        _wrong(path, number, f"custom_id is no text of 1 to {MAX_ID_CHARACTERS} characters")
    if method != "POST":
        _wrong(path, number, f"method is {method!r:.100}", "POST is the only one")
    if not isinstance(url, str) or url not in URLS:
        _wrong(path, number, f"url is {url!r:.100}", f"one of {', '.join(URLS)}")
    if not isinstance(body, dict):
        _wrong(path, number, "body is no object")
    if body.get("stream"):
        _wrong(path, number, "body asks for a stream", "remove stream: an answer is one line")
    return BatchLine(number, custom_id, url, offset, len(text))


def _wrong(path: Path, number: int, problem: str, fix: str = "") -> NoReturn:
    raise SpecError(f"{path}, line {number}", problem, fix=fix)

"""Questions to an OpenAI-compatible server over connections that stay open, light enough to share
two cores with what is measured: one protocol object a connection, a C parser for HTTP, and JSON
read only once an answer is whole. Imported by the scripts beside it.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httptools

TIMEOUT = "timeout"
CUT = "cut"
ERROR_EVENT = "error event"
NO_DONE = "no [DONE]"
WRONG_COUNT = "wrong count of tokens"
WRONG_TEXT = "wrong text"
"""Kinds of failure, beside `status 503` and its like."""


@dataclass(frozen=True, slots=True)
class Question:
    """One request, and what its answer has to be."""

    path: str
    body: bytes
    tokens: int | None = None
    """How many tokens the answer has to have, by its usage; None for any number."""
    text: str | None = None
    """What the answer has to say; None for anything."""
    leave_after: int | None = None
    """Pieces after which the client hangs up."""


@dataclass(slots=True)
class Answer:
    """What came back. Times are seconds of time.perf_counter."""

    began_s: float
    ended_s: float = 0.0
    status: int = 0
    failure: str | None = None
    """Which kind; None for a whole and right answer, and for a client that hung up."""
    retry_after: str | None = None
    token_events_s: list[float] = field(default_factory=list)
    """When each event with a token in it arrived; of an answer that doesn't stream, its end."""
    tokens: int = 0
    prompt_tokens: int = 0
    text: str = ""
    left: bool = False
    """Whether the client hung up, as it was to."""

    @property
    def started(self) -> bool:
        """Whether a token had arrived."""
        return bool(self.token_events_s)

    @property
    def reads(self) -> int:
        """How many times the socket had something with a token in it: fewer than the events where
        some came together."""
        return len(set(self.token_events_s))


class Connection(asyncio.Protocol):
    """One connection, one question at a time; opened again where the server has closed it."""

    def __init__(self, host: str, port: int, headers: Mapping[str, str]) -> None:
        self._host, self._port = host, port
        lines = {"Host": f"{host}:{port}", "Content-Type": "application/json", **headers}
        self._lines = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        self._transport: asyncio.Transport | None = None
        self._done: asyncio.Future[None] | None = None
        self._leave_after: int | None = None

    async def ask(self, question: Question, timeout_s: float) -> Answer:
        """Never raises for what a server or a network does: see Answer.failure."""
        answer = Answer(time.perf_counter())
        try:
            async with asyncio.timeout(timeout_s):
                await self._exchange(question, answer)
        except TimeoutError:
            answer.failure = TIMEOUT
            self.close()
        except OSError as wrong:
            answer.failure = f"not reached: {type(wrong).__name__}"
        answer.ended_s = time.perf_counter()
        _read(answer, question, self._arrivals if answer.status else [])
        return answer

    async def _exchange(self, question: Question, answer: Answer) -> None:
        if self._transport is None or self._transport.is_closing():
            loop = asyncio.get_running_loop()
            self._transport, _ = await loop.create_connection(lambda: self, self._host, self._port)
        self._answer, self._leave_after = answer, question.leave_after
        self._arrivals: list[tuple[float, bytes]] = []
        self._parser = httptools.HttpResponseParser(self)
        self._done = asyncio.get_running_loop().create_future()
        answer.began_s = time.perf_counter()
        head = f"POST {question.path} HTTP/1.1\r\n{self._lines}"
        length = f"Content-Length: {len(question.body)}\r\n\r\n"
        self._transport.write((head + length).encode() + question.body)
        await self._done

    def close(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.abort()
            self._transport = None

    # What asyncio calls.

    def data_received(self, data: bytes) -> None:
        self._now_s = time.perf_counter()
        if self._done is None or self._done.done():
            return
        self._parser.feed_data(data)

    def connection_lost(self, wrong: Exception | None) -> None:
        self._transport = None
        if self._done is not None and not self._done.done():
            self._answer.failure = CUT
            self._done.set_result(None)

    # What the parser calls.

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"retry-after":
            self._answer.retry_after = value.decode()

    def on_headers_complete(self) -> None:
        self._answer.status = self._parser.get_status_code()

    def on_body(self, body: bytes) -> None:
        self._arrivals.append((self._now_s, body))
        if self._leave_after is not None and len(self._arrivals) >= self._leave_after:
            self._answer.left = True
            self._finish(keep=False)

    def on_message_complete(self) -> None:
        self._finish(keep=self._parser.should_keep_alive())

    def _finish(self, *, keep: bool) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_result(None)
        if not keep:
            self.close()


def _read(answer: Answer, question: Question, arrivals: list[tuple[float, bytes]]) -> None:
    """Fill in what the bytes say."""
    body = b"".join(piece for _, piece in arrivals)
    if answer.status and answer.status != 200:
        answer.failure = answer.failure or f"status {answer.status}"
        return
    if body.startswith(b"data:"):
        done = _read_stream(answer, arrivals)
        if not done and not answer.left:
            answer.failure = answer.failure or NO_DONE
    elif answer.failure is None and not answer.left:
        _read_whole(answer, json.loads(body))
    if answer.failure is not None or answer.left:
        return
    if question.tokens is not None and answer.tokens != question.tokens:
        answer.failure = WRONG_COUNT
    elif question.text is not None and answer.text != question.text:
        answer.failure = WRONG_TEXT


def _read_stream(answer: Answer, arrivals: list[tuple[float, bytes]]) -> bool:
    """Whether it ends with [DONE]."""
    rest, words, done = b"", [], False
    for at_s, piece in arrivals:
        *events, rest = (rest + piece).split(b"\n\n")
        for event in events:
            data = event.removeprefix(b"data:").strip()
            if data == b"[DONE]":
                done = True
                continue
            word = _read_event(answer, json.loads(data))
            if word is not None:
                words.append(word)
                answer.token_events_s.append(at_s)
    answer.text = "".join(words)
    return done


def _read_event(answer: Answer, tree: dict[str, Any]) -> str | None:
    """The text of an event that holds a token."""
    if "error" in tree:
        answer.failure = ERROR_EVENT
        return None
    if usage := tree.get("usage"):
        answer.tokens = usage["completion_tokens"]
        answer.prompt_tokens = usage["prompt_tokens"]
    if not tree["choices"]:
        return None
    choice = tree["choices"][0]
    if "text" in choice:
        return str(choice["text"])
    delta = choice["delta"]
    # A chat begins with an event that only says who speaks.
    return None if delta.get("role") and not delta.get("content") else delta.get("content") or ""


def _read_whole(answer: Answer, tree: dict[str, Any]) -> None:
    usage = tree["usage"]
    answer.tokens = usage.get("completion_tokens", 0)
    answer.prompt_tokens = usage["prompt_tokens"]
    answer.token_events_s = [answer.ended_s]
    if choices := tree.get("choices"):
        choice = choices[0]
        answer.text = choice["text"] if "text" in choice else choice["message"]["content"] or ""

"""Clients in a process of their own, whose questions have known answers. Imported by the scripts
beside it."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import signal
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

import uvloop
from asking import Answer, Question
from load import Server, closed_loop, open_loop

from rayline.serving.rehearsal import oracle

TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Catalogue:
    """Numbered chats, greedy; of each it is known what the answer has to say."""

    model: str
    tokens: int
    """Of each answer."""
    texts: tuple[str, ...] = ()
    """The answers, over and over; none where a rehearsal answers, whose oracle is asked."""

    def questions(
        self, count: int | None = None, *, checked: bool = True, leave_after: int | None = None
    ) -> Iterator[Question]:
        """So many of them, or without end; every second one streams, and with `leave_after` all."""
        numbers = itertools.count() if count is None else range(count)
        for number in numbers:
            one = number % len(self.texts) if self.texts else number
            turns = [{"role": "user", "content": f"question {one}"}]
            body: dict[str, Any] = {
                "model": self.model,
                "messages": turns,
                "max_tokens": self.tokens,
                "temperature": 0,
                "ignore_eos": True,
            }
            if number % 2 == 0 or leave_after is not None:
                body |= {"stream": True, "stream_options": {"include_usage": True}}
            text = self.texts[one] if self.texts else oracle(turns, self.tokens)
            yield Question(
                "/v1/chat/completions",
                json.dumps(body).encode(),
                self.tokens,
                text if checked else None,
                leave_after,
            )


class Crowd:
    """Asks one server. Made before Ray is joined."""

    def __init__(self) -> None:
        # Not forked: whatever threads and locks the driver has stay with it.
        self._process = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        self.pids = {self._process.submit(os.getpid).result()}
        """The processes that are not the server's."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # Where something went wrong it may be asking still.
        for pid in self.pids:
            os.kill(pid, signal.SIGKILL)
        self._process.shutdown(cancel_futures=True)

    def closed(
        self,
        url: str,
        catalogue: Catalogue,
        at_once: int,
        *,
        count: int | None = None,
        seconds: float | None = None,
        checked: bool = True,
        leave_after: int | None = None,
        key: str | None = None,
    ) -> Future[list[Answer]]:
        """See load.closed_loop and Catalogue.questions."""
        asked = (url, catalogue, at_once, count, seconds, checked, leave_after, key)
        return self._process.submit(_closed, *asked)

    def open(
        self, url: str, catalogue: Catalogue, per_s: float, seconds: float
    ) -> Future[list[Answer]]:
        """See load.open_loop."""
        return self._process.submit(_open, url, catalogue, per_s, seconds)


def _closed(
    url: str,
    catalogue: Catalogue,
    at_once: int,
    count: int | None,
    seconds: float | None,
    checked: bool,
    leave_after: int | None,
    key: str | None,
) -> list[Answer]:
    questions = catalogue.questions(count, checked=checked, leave_after=leave_after)
    asking = closed_loop(Server(url, key), questions, at_once, seconds=seconds, timeout_s=TIMEOUT_S)
    return uvloop.run(asking)


def _open(url: str, catalogue: Catalogue, per_s: float, seconds: float) -> list[Answer]:
    asking = open_loop(Server(url), catalogue.questions(), per_s, seconds, timeout_s=TIMEOUT_S)
    return uvloop.run(asking)

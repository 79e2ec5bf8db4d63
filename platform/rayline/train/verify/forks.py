"""A process that has imported torch once and forks a child for every call it is sent.

It is a session of its own, with everything it forks: whoever started it ends them all by one signal
to the process group, and it ends by itself, with its children, when its starter is gone. Ctrl-C in
a terminal does not reach it; the starter hears it and ends the session.

Protocol, over one socket: module names to import; then, as often as wanted, a list of Calls in and
a list of Answers out.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

from rayline.errors import RaylineError, WorkerError
from rayline.train.imports import lasting_imports

GRACE_S = 5.0
"""How long the others may go on once a call has failed: what they say may be the cause."""
_FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True, slots=True)
class Call:
    """One function to be run in a child of its own."""

    name: str
    """How errors call it, such as `rank 0 (pp0-dp0-cp0-tp0)`."""
    function: str
    """`module:name`, so that whoever sends it need not import it."""
    arguments: tuple[Any, ...]
    log: Path
    """File for whatever it prints."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one call."""

    value: Any = None
    error: RaylineError | None = None
    died: bool = False
    """Whether its process ended without a word."""
    at_s: float = 0.0
    """Unix time of its end."""


def serve(descriptor: int) -> None:
    """Answer calls from the socket `descriptor` until its other end is closed."""
    starter = Connection(descriptor)
    try:
        with lasting_imports():
            for module in starter.recv():
                importlib.import_module(module)
        while True:
            starter.send(_run(starter.recv(), starter))
    except (EOFError, OSError):
        return


def _run(calls: Sequence[Call], starter: Connection) -> list[Answer]:
    """One child a call, all at once; the answers in the order of the calls. Raises EOFError once
    the starter is gone. No child is left in any case."""
    running: dict[Connection, tuple[int, ForkProcess]] = {}
    answers: dict[int, Answer] = {}
    children = []
    deadline_s: float | None = None
    try:
        for place, call in enumerate(calls):
            ours, theirs = _FORK.Pipe(duplex=False)
            child = _FORK.Process(target=_live, args=(call, theirs, starter))
            child.start()
            children.append(child)
            theirs.close()
            running[ours] = (place, child)
        while running:
            left_s = None if deadline_s is None else max(0.0, deadline_s - time.monotonic())
            ready = wait([*running, starter], left_s)
            if starter in ready:
                raise EOFError
            if not ready:
                break
            for pipe in [pipe for pipe in running if pipe in ready]:
                place, child = running.pop(pipe)
                answers[place] = _answer(calls[place], pipe, child)
            if deadline_s is None and any(answer.error for answer in answers.values()):
                deadline_s = time.monotonic() + GRACE_S
    finally:
        for child in children:
            child.kill()
            child.join()
    return [answers.get(place, Answer()) for place in range(len(calls))]


def _answer(call: Call, pipe: Connection, child: ForkProcess) -> Answer:
    try:
        answer: Answer = pipe.recv()
    except EOFError:
        child.join()
        error = WorkerError(
            call.name, f"its process ended: exit code {child.exitcode}", fix=f"see {call.log}"
        )
        error.remote_traceback = call.log.read_text(errors="replace")[-4000:]
        return Answer(error=error, died=True, at_s=time.time())
    finally:
        pipe.close()
    child.join()
    return answer


def _live(call: Call, pipe: Connection, starter: Connection) -> None:
    """A child's whole life."""
    # Inherited, and only in the way: while a child holds it, its other end never sees it close.
    starter.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with call.log.open("w") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    try:
        module, _, name = call.function.partition(":")
        value = getattr(importlib.import_module(module), name)(*call.arguments)
        answer = Answer(value, at_s=time.time())
    # User code may raise anything, SystemExit included; the starter decides what follows.
    except BaseException as wrong:  # noqa: BLE001
        answer = Answer(error=_as_error(call.name, wrong), at_s=time.time())
    pipe.send(answer)


def _as_error(name: str, wrong: BaseException) -> RaylineError:
    """A RaylineError unchanged; anything else as a WorkerError with the whole traceback."""
    if isinstance(wrong, RaylineError):
        return wrong
    lines = str(wrong).strip().splitlines() or ["no message"]
    error = WorkerError(
        name, f"{type(wrong).__name__}: {lines[0][:300]}", fix="repeat with -v for the traceback"
    )
    error.remote_traceback = "".join(traceback.format_exception(wrong))
    return error

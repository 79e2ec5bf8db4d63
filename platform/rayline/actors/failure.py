"""What a failed rank means, and what the gang does about it: facts in, decision out. No Ray.

A rank fails in one of five ways. rayline refused to go on, by an error of its own; its code raised;
its process ended without a word, or hung and was ended; it was slow, where the spec says to replace
what is; or it lost contact with a neighbour that failed in one of the first ways. The last is never
the cause while one of the others is known, and the gang's answer goes by the cause alone. What was
refused would be refused again, so the job stops. Code that raised gets a second chance: where it
raises the same again, the mistake is the user's and the job stops. A process that was killed, or a
node that went away, is worth as many starts as the spec allows. A slow one is worth one that is
left, and never the job.
"""

from __future__ import annotations

import re
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, get_args

from rayline.actors.straggler import Straggler
from rayline.errors import RaylineError, WorkerError
from rayline.spec import Coordinate

FailureKind = Literal["refused", "raised", "hung", "died", "slow", "lost_contact"]

_LOST_CONTACT = (
    "connection closed by peer",
    "connection reset by peer",
    "connection refused",
    "broken pipe",
    "socket closed",
    "remote process exited",
    "remotely closed",
    "communicator was aborted",
    "failed to recv, got 0 bytes",
    "client socket has failed to connect",
    "timed out waiting",
    "socket timeout",
    "wait timeout",
    "collective operation timeout",
    "nccl remote error",
    "ncclremoteerror",
)
"""What gloo, NCCL and torch's TCPStore say when the other end is gone or silent (torch 2.13: gloo
transport/tcp/pair.cc, ProcessGroupNCCL.cpp, c10d/socket.cpp, TCPStore.cpp)."""


_NO_MEMORY = re.compile(r"low on memory|memory running low|out of memory|\boom\b")
"""How Ray tells that its memory monitor, or the kernel, ended a process (Ray 2.60: raylet's
worker_killing_policy and node_manager.cc)."""
_GUESSES = "Some common causes include"
"""From here on Ray no longer says what it saw."""


@dataclass(frozen=True, slots=True)
class Failure:
    """One rank's end before its time."""

    rank: int
    kind: FailureKind
    error: RaylineError
    """What the user is shown if this is the cause."""
    at_s: float
    """Unix time: when it raised, or when its death was seen."""
    out_of_memory: bool = False
    """Whether its device, or its host, had no memory left."""

    @property
    def signature(self) -> str:
        """What two failures by the same mistake have in common: the error and its place in the
        code, whichever rank met it first."""
        return f"{self.kind}: {self.error.problem}"


def worker_name(rank: int, coordinate: Coordinate) -> str:
    """How messages and logs call a worker."""
    return f"worker rank {rank} ({coordinate})"


def failure_of(rank: int, coordinate: Coordinate, wrong: BaseException, at_s: float) -> Failure:
    """What `wrong`, raised by the code of a rank, is to the gang. Called in the worker.

    A RaylineError is handed on unchanged; anything else becomes a WorkerError that begins with the
    place in the user's code and carries the whole traceback.
    """
    if isinstance(wrong, RaylineError):
        lost = isinstance(wrong, WorkerError) and lost_contact(wrong)
        return Failure(rank, "lost_contact" if lost else "refused", wrong, at_s)
    error = WorkerError(
        worker_name(rank, coordinate),
        f"{type(wrong).__name__}: {_first_line(wrong)}{_place(wrong.__traceback__)}",
        fix="the whole traceback is in the worker's log",
    )
    error.rank = rank
    error.remote_traceback = "".join(traceback.format_exception(wrong))
    if out_of_memory(wrong):
        return Failure(rank, "refused", error, at_s, out_of_memory=True)
    return Failure(rank, "lost_contact" if lost_contact(wrong) else "raised", error, at_s)


def death_of(rank: int, coordinate: Coordinate, told: str, log_file: str, at_s: float) -> Failure:
    """What the end of a worker's process is to the gang; `told` is what Ray says about it."""
    # Ray begins with the actor's ids; what follows these words is the reason.
    reason = told.rpartition("is dead because ")[2].partition(_GUESSES)[0]
    error = WorkerError(
        worker_name(rank, coordinate),
        f"its process ended: {' '.join(reason.split())[:600]}",
        fix=f"its last lines are in {log_file}; recovery.max_restarts lets the gang replace it",
    )
    error.rank = rank
    short = _NO_MEMORY.search(reason.lower())
    return Failure(rank, "died", error, at_s, out_of_memory=short is not None)


def hang_of(rank: int, coordinate: Coordinate, step: int, told: str, at_s: float) -> Failure:
    """What a rank that all others wait for is to the gang; `told` says what it does."""
    error = WorkerError(
        worker_name(rank, coordinate),
        f"hangs in step {step}: it {told}",
        fix="the stacks of all ranks are in the folder `hangs` of the run",
    )
    error.rank = rank
    return Failure(rank, "hung", error, at_s)


def slow_of(straggler: Straggler, coordinate: Coordinate, address: str) -> Failure:
    """What a rank that all others wait for, a little in every step, is to the gang, as of now;
    `address` is its node's."""
    error = WorkerError(
        worker_name(straggler.rank, coordinate),
        f"{straggler}, on node {address}",
        fix="look at what else that node runs, its clock rates and its storage",
    )
    error.rank = straggler.rank
    return Failure(straggler.rank, "slow", error, time.time())


def lost_contact(wrong: BaseException) -> bool:
    """Whether `wrong` says no more than that another rank is gone.

    torch raises RuntimeError (its DistError is one) from the transports, so other kinds, such as a
    user's own ConnectionError, are never taken for it.
    """
    return any(
        isinstance(link, RuntimeError | WorkerError)
        and any(words in str(link).lower() for words in _LOST_CONTACT)
        for link in _chain(wrong)
    )


def first_cause(failures: Sequence[Failure]) -> Failure:
    """The failure that the others followed from: a refusal before code that raised before a process
    that hung or died before one that is slow before a rank that lost contact, the earliest of each.
    `failures` is not empty."""
    order = get_args(FailureKind)
    return min(failures, key=lambda failure: (order.index(failure.kind), failure.at_s))


def _chain(wrong: BaseException) -> Iterator[BaseException]:
    link: BaseException | None = wrong
    seen: set[int] = set()
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or link.__context__


def _first_line(wrong: BaseException) -> str:
    lines = str(wrong).strip().splitlines()
    return lines[0][:300] if lines else "no message"


def _place(trace: TracebackType | None) -> str:
    """The innermost line that is not a library's: most often the user's own."""
    frames = traceback.extract_tb(trace)
    own = [frame for frame in frames if "site-packages" not in frame.filename]
    if not own:
        return ""
    return f", at {own[-1].filename}:{own[-1].lineno}: {own[-1].line}"


def out_of_memory(wrong: BaseException) -> bool:
    """Whether a device or the host had no memory left: another start would end alike."""
    return type(wrong).__name__ == "OutOfMemoryError" or "out of memory" in str(wrong).lower()

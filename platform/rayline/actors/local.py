"""Calls in processes of this machine, without Ray: for what must run on any laptop.

A Ray cluster takes ten seconds and half a gigabyte before its first worker stands; a rank forked
from a process that has torch already takes milliseconds, and shares what was imported. There is
nothing to place here, and nothing to restart. Every process started belongs to one session, which
is ended whole on every way out.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from rayline.actors.failure import Failure, FailureKind, first_cause, lost_contact
from rayline.errors import WorkerError
from rayline.train.verify.forks import Answer, Call

_END_S = 2.0
_POLL_S = 0.02
RunCalls = Callable[[Sequence[Call]], list[Any]]
"""Runs calls, each in a process of its own, all at once; returns their values in order. Raises the
RaylineError of the call that failed first, not of those that lost contact with it."""


@contextmanager
def local_processes(modules: Sequence[str], folder: Path) -> Iterator[RunCalls]:
    """A process that imports `modules` once and forks a child for every call. Called by the driver.
    `folder` takes its log. On the way out, by an error or Ctrl-C too, every process is gone."""
    ours, theirs = socket.socketpair()
    log_file = folder / "starter.log"
    with ExitStack() as cleanup:
        connection = Connection(ours.detach())
        cleanup.callback(connection.close)
        with theirs, log_file.open("w") as log:
            code = f"from rayline.train.verify.forks import serve; serve({theirs.fileno()})"
            starter = subprocess.Popen(
                # -P: a file of the user's folder must not take the place of a module.
                [sys.executable, "-P", "-c", code],
                pass_fds=[theirs.fileno()],
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        cleanup.callback(_end, starter, connection)
        connection.send(list(modules))
        yield lambda calls: _run(connection, calls, log_file)


def _environment() -> dict[str, str]:
    """The same modules as here, one thread a rank, and no word from packages that fork badly."""
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "OMP_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def _end(starter: subprocess.Popen[bytes], connection: Connection) -> None:
    """End the session: the starter, told by the closed connection, ends and buries its children
    itself; whatever is left after a moment is killed."""
    connection.close()
    deadline_s = time.monotonic() + _END_S
    # It is looked at without being waited for: until then no other process can have its number.
    look = os.WEXITED | os.WNOHANG | os.WNOWAIT
    while os.waitid(os.P_PID, starter.pid, look) is None and time.monotonic() < deadline_s:
        time.sleep(_POLL_S)
    with suppress(ProcessLookupError):
        os.killpg(starter.pid, signal.SIGKILL)
    starter.wait()


def _run(connection: Connection, calls: Sequence[Call], log_file: Path) -> list[Any]:
    try:
        connection.send(list(calls))
        answers: list[Answer] = connection.recv()
    except (EOFError, OSError):
        said = log_file.read_text(errors="replace").strip()
        error = WorkerError(
            "local processes",
            f"the process that starts them ended: {said.splitlines()[-1] if said else 'no word'}",
            fix="repeat with -v for what it printed",
        )
        error.remote_traceback = said
        raise error from None
    failures = [
        Failure(place, _kind(answer), answer.error, answer.at_s)
        for place, answer in enumerate(answers)
        if answer.error is not None
    ]
    if failures:
        raise first_cause(failures).error
    return [answer.value for answer in answers]


def _kind(answer: Answer) -> FailureKind:
    if answer.died:
        return "died"
    lost = isinstance(answer.error, WorkerError) and lost_contact(answer.error)
    return "lost_contact" if lost else "raised"

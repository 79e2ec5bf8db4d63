"""A submitted job's log as it grows: read over a websocket, taken up again where it broke off.

The dashboard sends a log from its beginning on every connection, so what was handed on already is
skipped after a reconnect. A connection that is closed says nothing of the job: a dashboard that
goes down closes it in good order too. So only the job's own end is the log's, and then the whole
log is asked for once, in case that its last lines did not come over.

It is read in a thread of its own, and handed on in the caller's.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rayline.launch.dashboard import Dashboard

_RETRY_S = 1.0
_LEAVE_S = 2.0
"""How long the reader may take to hear that nobody listens any more; it ends by itself after."""


class JobLog:
    """One job's log, handed to `on_log` in the caller's thread; without it nothing is read."""

    def __init__(
        self, dashboard: Dashboard, job_id: str, on_log: Callable[[str], None] | None
    ) -> None:
        self._dashboard = dashboard
        self._job_id = job_id
        self._on_log = on_log
        self._pieces: queue.SimpleQueue[str] = queue.SimpleQueue()
        """What was read, in order, nothing twice."""
        self._handed = 0
        """Characters that were handed on."""
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        if self._on_log is not None:
            self._thread = threading.Thread(target=self._read, name="job-log", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        wrong: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        if self._thread is not None:
            self._thread.join(_LEAVE_S)

    def follow(self, seconds: float) -> None:
        """Hand on what comes within `seconds`; without a listener, sleep."""
        deadline_s = time.monotonic() + seconds
        while (left_s := deadline_s - time.monotonic()) > 0:
            try:
                self._hand_on(self._pieces.get(timeout=left_s))
            except queue.Empty:
                return

    def finish(self) -> None:
        """Hand on all that is left of the log of a job that has ended. Raises PlacementError where
        the cluster does not answer."""
        if self._on_log is None:
            return
        whole = self._dashboard.log(self._job_id)
        while not self._pieces.empty():
            self._hand_on(self._pieces.get())
        # Where the node that held the log is gone, there is less of it than came over before.
        self._hand_on(whole[self._handed :])

    def _hand_on(self, piece: str) -> None:
        self._handed += len(piece)
        if self._on_log is not None and piece:
            self._on_log(piece)

    def _read(self) -> None:
        handed = 0
        while not self._over.is_set():
            seen = 0
            # The operating system, TLS and websockets have errors of their own for a broken line.
            with contextlib.suppress(Exception):
                for piece in self._dashboard.follow_log(self._job_id, self._over):
                    # Of a piece that reaches beyond what was handed on, the rest is new.
                    if new := piece[max(0, handed - seen) :]:
                        self._pieces.put(new)
                    seen += len(piece)
                    handed = max(handed, seen)
            self._over.wait(_RETRY_S)

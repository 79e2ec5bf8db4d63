"""A submitted job's log as it grows: read over a websocket, taken up again where it broke off.

The dashboard sends a log from its beginning on every connection, so what was handed on already is
skipped after a reconnect. A connection that is closed says nothing of the job: a dashboard that
goes down closes it in good order too. So only the job's own end is the log's, and then the whole
log is asked for once, in case that its last lines did not come over.

Reading has a thread and an event loop of its own: a notebook's main thread runs a loop already.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from ray.job_submission import JobSubmissionClient

_RETRY_S = 1.0


class JobLog:
    """One job's log, handed to `on_log` in the caller's thread; without it nothing is read."""

    def __init__(
        self, client: JobSubmissionClient, job_id: str, on_log: Callable[[str], None] | None
    ) -> None:
        self._client = client
        self._job_id = job_id
        self._on_log = on_log
        self._pieces: queue.SimpleQueue[str] = queue.SimpleQueue()
        """What was read, in order, nothing twice."""
        self._handed = 0
        """Characters that were handed on."""
        self._loop = asyncio.new_event_loop()
        self._reading: asyncio.Task[None] | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        if self._on_log is not None:
            self._reading = self._loop.create_task(self._read())
            self._thread = threading.Thread(target=self._run, name="job-log", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        wrong: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._thread is not None and self._reading is not None:
            self._loop.call_soon_threadsafe(self._reading.cancel)
            self._thread.join()
        self._loop.close()

    def follow(self, seconds: float) -> None:
        """Hand on what comes within `seconds`; without a listener, sleep."""
        deadline_s = time.monotonic() + seconds
        while (left_s := deadline_s - time.monotonic()) > 0:
            try:
                self._hand_on(self._pieces.get(timeout=left_s))
            except queue.Empty:
                return

    def finish(self) -> None:
        """Hand on all that is left of the log of a job that has ended. Raises what the client
        raises where the cluster does not answer."""
        if self._on_log is None:
            return
        whole: str = self._client.get_job_logs(self._job_id)
        while not self._pieces.empty():
            self._hand_on(self._pieces.get())
        # Where the node that held the log is gone, there is less of it than came over before.
        self._hand_on(whole[self._handed :])

    def _hand_on(self, piece: str) -> None:
        self._handed += len(piece)
        if self._on_log is not None and piece:
            self._on_log(piece)

    def _run(self) -> None:
        if self._reading is not None:
            self._loop.run_until_complete(asyncio.wait([self._reading]))
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())

    async def _read(self) -> None:
        handed = 0
        while True:
            seen = 0
            # aiohttp, Ray and the operating system each have errors of their own for a broken line.
            with contextlib.suppress(Exception):
                async for piece in self._client.tail_job_logs(self._job_id):
                    # Of a piece that reaches beyond what was handed on, the rest is new.
                    if new := piece[max(0, handed - seen) :]:
                        self._pieces.put(new)
                    seen += len(piece)
                    handed = max(handed, seen)
            await asyncio.sleep(_RETRY_S)

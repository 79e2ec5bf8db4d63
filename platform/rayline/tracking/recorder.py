"""Metric rows and tags on their way to the store, sent in batches by one background thread.

Training hands rows over and goes on: it neither waits for the store nor sees its errors. What
could not be sent stays at the head of the queue and is tried again, ever more rarely, and once
more at the end.
"""

from __future__ import annotations

import functools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

_log = logging.getLogger(__name__)

FLUSH_S = 2.0
"""Longest that a row waits while the store answers."""
FLUSH_ROWS = 250
"""Rows that are sent at once even before that: some twenty steps."""
BATCH_ROWS = 1000
"""Most rows in one request: MLflow's own limit is 1000 metrics and 100 tags."""
BATCH_TAGS = 100
LONGEST_PAUSE_S = 60.0


@dataclass(frozen=True, slots=True)
class MetricRow:
    """One point of one metric."""

    key: str
    value: float
    time_ms: int
    step: int


@dataclass(frozen=True, slots=True)
class TagRow:
    """One tag of the run."""

    key: str
    value: str


Row = MetricRow | TagRow


def pause_s(failures: int) -> float:
    """How long to wait after `failures` attempts in a row that failed."""
    return min(FLUSH_S * 2.0**failures, LONGEST_PAUSE_S)


def next_batch(rows: Iterable[Row]) -> list[Row]:
    """The longest beginning of `rows` that one request may hold."""
    batch: list[Row] = []
    tags = 0
    for row in rows:
        tags += isinstance(row, TagRow)
        if len(batch) == BATCH_ROWS or tags > BATCH_TAGS:
            break
        batch.append(row)
    return batch


class Recorder:
    """A queue and the thread that empties it. `send` gets at most one batch and may raise; `sample`
    is asked for further rows every `sample_s` seconds, at the start and at the end."""

    def __init__(
        self,
        send: Callable[[Sequence[Row]], None],
        sample: Callable[[], Sequence[Row]],
        sample_s: float,
    ) -> None:
        self._send = send
        self._sample = sample
        self._sample_s = sample_s
        self._rows: deque[Row] = deque()
        self._wake = threading.Condition()
        self._failures = 0
        self._last: Callable[[], None] | None = None
        self._complete = False
        self.last_error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="tracking-recorder", daemon=True)
        self._thread.start()

    def add(self, rows: Iterable[Row]) -> None:
        """Hand rows over; returns at once and never raises."""
        with self._wake:
            self._rows.extend(rows)
            # After a failure the pause holds, however many rows wait.
            if len(self._rows) >= FLUSH_ROWS and not self._failures:
                self._wake.notify()

    @property
    def unsent(self) -> int:
        """Rows that the store does not have yet."""
        with self._wake:
            return len(self._rows)

    def close(self, last: Callable[[], None], timeout_s: float) -> bool:
        """Send what is left, call `last`, end the thread, in at most `timeout_s` seconds.

        True when everything was sent and `last` went through.
        """
        with self._wake:
            self._last = last
            self._wake.notify()
        self._thread.join(timeout_s)
        return not self._thread.is_alive() and self._complete

    def _run(self) -> None:
        next_sample = time.monotonic()
        while True:
            if time.monotonic() >= next_sample:
                self.add(self._sample())
                next_sample = time.monotonic() + self._sample_s
            with self._wake:
                if self._last is None and (self._failures or len(self._rows) < FLUSH_ROWS):
                    self._wake.wait(pause_s(self._failures))
                last = self._last
            if last is not None:
                self._finish(last)
                return
            self._flush()

    def _finish(self, last: Callable[[], None]) -> None:
        self.add(self._sample())
        self._complete = self._flush() and self._attempt(last)

    def _flush(self) -> bool:
        """Send batch after batch until none is left (True) or one fails (False)."""
        while batch := self._head():
            if not self._attempt(functools.partial(self._send, batch)):
                return False
            with self._wake:
                for _ in batch:
                    self._rows.popleft()
        return True

    def _head(self) -> list[Row]:
        with self._wake:
            return next_batch(self._rows)

    def _attempt(self, action: Callable[[], None]) -> bool:
        try:
            action()
        # Training must not end because its record cannot be kept.
        except Exception as wrong:  # noqa: BLE001
            if self.last_error is None:
                _log.warning(
                    "tracking: the store does not take metrics (%s); training goes on, they are "
                    "kept and sent again",
                    str(wrong).partition("\n")[0],
                )
            self.last_error = wrong
            self._failures += 1
            return False
        self._failures = 0
        return True

"""Rows on their way to the store, sent in batches by one background thread.

Training hands rows over and goes on: it neither waits for the store nor sees its errors. A row is
in the run's spool before this returns; what could not be sent stays at its head and is tried again,
ever more rarely, and once more at the end.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence

from rayline.tracking.rows import MetricRow, Row, TagRow
from rayline.tracking.spool import Spool

_log = logging.getLogger(__name__)

FLUSH_S = 2.0
"""Longest that a row waits while the store answers."""
FLUSH_ROWS = 250
"""Rows that are sent at once even before that: some twenty steps."""
LONGEST_PAUSE_S = 60.0


def pause_s(failures: int) -> float:
    """How long to wait after `failures` attempts in a row that failed."""
    return min(FLUSH_S * 2.0**failures, LONGEST_PAUSE_S)


class Recorder:
    """The thread that empties a spool. `send` gets at most one request's rows and may raise;
    `sample` is asked for further rows every `sample_s` seconds, at the start and at the end."""

    def __init__(
        self,
        spool: Spool,
        send: Callable[[Sequence[Row]], None],
        sample: Callable[[], Sequence[Row]],
        sample_s: float,
    ) -> None:
        self._spool = spool
        self._send = send
        self._sample = sample
        self._sample_s = sample_s
        self._wake = threading.Condition()
        self._failures = 0
        self._hurry = False
        self._last: Callable[[], None] | None = None
        self._complete = False
        self.last_error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name="tracking-recorder", daemon=True)
        self._thread.start()

    def add(self, rows: Iterable[Row]) -> None:
        """Hand rows over; returns at once and never raises."""
        taken = list(rows)
        self._spool.append(taken)
        with self._wake:
            # Points may wait for company, but not what others look for.
            self._hurry |= not all(isinstance(row, MetricRow | TagRow) for row in taken)
            if self._due():
                self._wake.notify()

    @property
    def unsent(self) -> int:
        """Rows that the store does not have yet."""
        return self._spool.unsent

    def close(self, last: Callable[[], None], timeout_s: float) -> bool:
        """Send what is left, call `last`, end the thread, in at most `timeout_s` seconds.

        True when everything was sent and `last` went through.
        """
        with self._wake:
            self._last = last
            self._wake.notify()
        self._thread.join(timeout_s)
        return not self._thread.is_alive() and self._complete

    @property
    def ended(self) -> bool:
        """Whether nothing is being sent any more."""
        return not self._thread.is_alive()

    def _due(self) -> bool:
        # After a failure the pause holds, whatever waits.
        return not self._failures and (self._hurry or self._spool.unsent >= FLUSH_ROWS)

    def _run(self) -> None:
        next_sample = time.monotonic()
        while True:
            if time.monotonic() >= next_sample:
                self._spool.append(self._sample())
                next_sample = time.monotonic() + self._sample_s
            with self._wake:
                if self._last is None and not self._due():
                    self._wake.wait(pause_s(self._failures))
                self._hurry = False
                last = self._last
            if last is not None:
                self._finish(last)
                return
            self._flush()

    def _finish(self, last: Callable[[], None]) -> None:
        self._spool.append(self._sample())
        self._complete = self._flush() and self._attempt(last)

    def _flush(self) -> bool:
        """Send batch after batch until none is left (True) or one fails (False)."""
        while self._spool.unsent:
            if not self._attempt(self._send_next):
                return False
        return True

    def _send_next(self) -> None:
        batch = self._spool.head()
        if not batch:
            raise OSError(f"the rows in {self._spool.folder} cannot be read")
        self._send(batch)
        self._spool.drop(len(batch))

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

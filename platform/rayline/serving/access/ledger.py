"""Ledger: every request's usage, written to the store once, without holding up any request."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial

import sqlalchemy as sql

from rayline.errors import ServingError
from rayline.serving.access.spool import Spool
from rayline.serving.access.store import Store
from rayline.serving.access.usage import SCHEMA, UsageRow, write_rows

logger = logging.getLogger(__name__)

WRITE_S = 0.5
"""How long a row waits for others to be written with."""
MAX_ROWS = 50_000
"""Most rows in memory, about 30 MB: what a store that hangs may gather until its timeout."""
_BATCH_ROWS = 1_000
_AGAIN_S = (1.0, 2.0, 5.0, 10.0)
"""How long a store that did not answer is left alone, the first time, the second ..."""


class Ledger:
    """Rows go from `add` to a thread of its own, which writes batches.

    While the store is away rows wait in the spool; once it is back they are written, each once by
    its request id, whatever was written before. Where memory or the spool is full, rows are lost,
    counted in `lost` and told in the log. Making one raises ServingError where the store does not
    answer.
    """

    def __init__(
        self, store: Store, spool: Spool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        store.ensure(SCHEMA)
        self.lost = 0
        """Rows that were never written."""
        self._store = store
        self._spool = spool
        self._clock = clock
        self._rows: deque[UsageRow] = deque()
        self._wake = threading.Event()
        self._closing = False
        self._failures = 0
        self._again_at_s = 0.0
        self._thread = threading.Thread(target=self._run, name="usage-ledger", daemon=True)
        self._thread.start()

    def add(self, row: UsageRow) -> None:
        """Hand over a row; returns at once. Called from any thread, once a request."""
        if len(self._rows) >= MAX_ROWS:
            self._lose(1)
            return
        self._rows.append(row)
        if len(self._rows) >= _BATCH_ROWS:
            self._wake.set()

    def close(self, timeout_s: float = 10.0) -> None:
        """Write what is there, to the store or else to the spool, and end."""
        self._closing = True
        self._wake.set()
        self._thread.join(timeout_s)
        if self._thread.is_alive():
            logger.error("usage: the store did not take the last rows in %.0f s", timeout_s)

    def _run(self) -> None:
        while not self._closing:
            self._wake.wait(WRITE_S)
            self._wake.clear()
            self._pass_on()
        # What came between the last look and the end.
        self._pass_on()
        self._spool.close()

    def _pass_on(self) -> None:
        """Everything that waits, to the store or to the spool."""
        if self._clock() >= self._again_at_s and self._spool.waiting:
            self._reach(self._empty_spool)
        while self._rows:
            batch = [self._rows.popleft() for _ in range(min(_BATCH_ROWS, len(self._rows)))]
            away = self._clock() < self._again_at_s
            if away or not self._reach(partial(self._write, batch)):
                self._keep(batch)

    def _reach(self, write: Callable[[], None]) -> bool:
        """Whether the store took it; if not, it is left alone for a while."""
        try:
            write()
        except ServingError as wrong:
            wait_s = _AGAIN_S[min(self._failures, len(_AGAIN_S) - 1)]
            self._again_at_s = self._clock() + wait_s
            if not self._failures:
                logger.warning("usage: rows wait in the spool; %s", wrong.problem)
            self._failures += 1
            return False
        if self._failures:
            logger.warning("usage: the store answers again")
            self._failures = 0
        return True

    def _empty_spool(self) -> None:
        try:
            for batch in self._spool.batches():
                self._write(batch)
        except OSError as wrong:
            logger.error("usage: the spool cannot be read: %s", wrong.strerror)

    def _write(self, rows: Sequence[UsageRow]) -> None:
        """Raises ServingError where the store is away. A row that it will never take is left out,
        so that it does not hold up the others."""
        try:
            write_rows(self._store, rows)
        except ServingError as wrong:
            if not isinstance(wrong.__cause__, sql.exc.DataError | sql.exc.IntegrityError):
                raise
            if len(rows) > 1:
                for row in rows:
                    self._write([row])
                return
            logger.error("usage: the store refuses row %s: %s", rows[0].request_id, wrong.problem)
            self.lost += 1

    def _keep(self, rows: Sequence[UsageRow]) -> None:
        try:
            lost = self._spool.keep(rows)
        except OSError as wrong:
            logger.error("usage: the spool cannot be written: %s", wrong.strerror)
            lost = len(rows)
        if lost:
            self._lose(lost)

    def _lose(self, rows: int) -> None:
        if not self.lost:
            logger.error("usage: the store is away and there is no place to wait: rows are lost")
        self.lost += rows

"""Ctrl-C and SIGTERM: the first asks the gang to stop with a checkpoint, the second ends it now."""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

log = logging.getLogger(__name__)

PATIENCE_S = 60.0
"""How long an interrupted gang may take over the step in flight and its checkpoint."""

_LOOK_S = 0.1


class StopRequest:
    """Whether a job should stop, and who said so: its caller through an event, or the user."""

    def __init__(self, event: threading.Event | None = None) -> None:
        self._event = event
        self._by_user_at_s: float | None = None

    @property
    def by_user(self) -> bool:
        """Whether a signal asked for it."""
        return self._by_user_at_s is not None

    def requested(self) -> bool:
        """Whether anybody asked for it."""
        return self.by_user or (self._event is not None and self._event.is_set())

    def wait(self, seconds: float) -> None:
        """Return after so long, or once anybody asked to stop."""
        deadline_s = time.monotonic() + seconds
        while time.monotonic() < deadline_s and not self.requested():
            time.sleep(min(_LOOK_S, seconds))

    def out_of_patience(self) -> bool:
        """Whether the user has waited long enough for a graceful end."""
        asked_s = self._by_user_at_s
        return asked_s is not None and time.monotonic() - asked_s > PATIENCE_S

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take SIGINT and SIGTERM as a request; outside the main thread signals stay as they are.

        A second signal raises KeyboardInterrupt where the driver then is.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        signals = (signal.SIGINT, signal.SIGTERM)
        before = [signal.signal(number, self._heard) for number in signals]
        try:
            yield
        finally:
            for number, handler in zip(signals, before, strict=True):
                signal.signal(number, handler)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if self.by_user:
            raise KeyboardInterrupt
        self._by_user_at_s = time.monotonic()
        log.warning("stopping after the step in flight, with a checkpoint; again ends it at once")

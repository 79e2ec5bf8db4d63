"""How fast shards are written: a job beside others leaves them their part of a node's bandwidth."""

from __future__ import annotations

import time
from collections.abc import Callable


def pause_s(written_bytes: int, elapsed_s: float, bytes_per_s: float) -> float:
    """How long to wait after so many bytes in so much time, so as not to have been faster."""
    return max(0.0, written_bytes / bytes_per_s - elapsed_s)


class Throttle:
    """Paces the writing of one file; None leaves it as fast as storage is."""

    def __init__(
        self,
        bytes_per_s: float | None,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._bytes_per_s = bytes_per_s
        self._now, self._sleep = now, sleep
        self._began_s = now()
        self._written_bytes = 0

    def wrote(self, count_bytes: int) -> None:
        """So many bytes more were written; returns once it is time for the next."""
        self._written_bytes += count_bytes
        if self._bytes_per_s is not None:
            elapsed_s = self._now() - self._began_s
            self._sleep(pause_s(self._written_bytes, elapsed_s, self._bytes_per_s))

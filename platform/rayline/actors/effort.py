"""How much of its steps a rank spends on work of its own, and how much on waiting for others.

Ranks move in step, so the steps of all take equally long, whoever is slow; what differs is how long
each of them works. A thread of the worker looks now and then where the training thread stands, and
counts. The times of its looks are random: at a fixed rate it would see the same place of each step
for ever where steps are as long as the time between two looks.

What is seen is the host's side. On a GPU the training thread runs ahead of the device and then
waits for a number from it (`rayline.parallel.waiting`): a rank whose host is slow, by its data, its
cores or its Python, is told from its peers, but one whose GPU is slow is not, since the others'
kernels wait for it where no stack shows it.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rayline.actors.progress import Progress

_EVERY_S = 0.02
"""Between two looks, on average. A look takes a microsecond or two, the wake-up some tens: 0.3 to
0.4 % of a core in all, on one that is busy."""


@dataclass(frozen=True, slots=True)
class Effort:
    """What was counted since the run began."""

    step: int
    """The step that the rank is in."""
    looks: int
    """While it was in a step, at its data or its engine."""
    at_work: int
    """Those of them that found it at work of its own."""


class EffortMeter:
    """Counts for one rank, for one run at a time."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._looks = 0
        self._at_work = 0

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Count, from nothing, while a run lasts. Entered by its training thread."""
        self._looks = self._at_work = 0
        over = threading.Event()
        meter = threading.Thread(target=self._count, args=(over,), name="effort", daemon=True)
        meter.start()
        try:
            yield
        finally:
            over.set()
            meter.join()

    def effort(self) -> Effort:
        """The counts so far; called by any thread."""
        return Effort(self._progress.step, self._looks, self._at_work)

    def _count(self, over: threading.Event) -> None:
        # Its own: training code may draw from Python's.
        draw = random.Random()
        while not over.is_set():
            # Half as dear as to wait for the event.
            time.sleep(draw.uniform(0.5, 1.5) * _EVERY_S)
            working = self._progress.is_working()
            if working is not None:
                self._looks += 1
                self._at_work += working

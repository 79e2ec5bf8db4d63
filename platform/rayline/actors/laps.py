"""The driver's view of how much each rank works, lap by lap.

Every two seconds all ranks are asked for their counts (`rayline.actors.effort`), at one time: a lap
is what was counted between two answers. So laps of all ranks cover the same time, and nobody has to
count by steps.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence

from rayline.actors.effort import Effort
from rayline.actors.straggler import (
    LAP_LOOKS,
    LAP_STEPS,
    LAPS,
    Lap,
    Straggler,
    find_stragglers,
)

_ASK_S = 1.5
"""Between two questions, at least; the driver looks every second. So laps of short steps take four
seconds: four of them, and what is left of the one in which a rank became slow, are over within 25
seconds. Where steps are long, it is 25 steps."""


class Laps:
    """One gang's. `begin` at each of its beginnings."""

    def __init__(self, stages: Sequence[int]) -> None:
        """`stages`: the pipeline stage of each rank."""
        self._stages = stages
        self._asked_s = time.monotonic()
        self._latest: deque[Lap] = deque(maxlen=LAPS)
        self._first: list[Lap] = []
        self._began: Mapping[int, Effort] = {}
        self._warm = False
        self._told: set[int] = set()

    def begin(self) -> None:
        """The gang begins: nothing is known of its ranks."""
        self._latest.clear()
        self._first, self._began, self._warm = [], {}, False
        self._told.clear()
        self._asked_s = time.monotonic()

    def is_due(self) -> bool:
        """Whether the ranks are to be asked; where it is, they are taken to be asked now."""
        now_s = time.monotonic()
        if len(self._stages) == 1 or now_s - self._asked_s < _ASK_S:
            return False
        self._asked_s = now_s
        return True

    def take(self, efforts: Mapping[int, Effort]) -> list[Straggler]:
        """Every rank's answer to one question. Returns the ranks that are found slow by it, each
        once in a beginning."""
        if not self._began:
            self._began = efforts
        lap = _lap(self._began, efforts)
        if lap is None:
            return []
        self._began = efforts
        if not self._warm:
            # First steps allocate, compile and fill caches: they tell nothing of later ones.
            self._warm = True
            return []
        self._latest.append(lap)
        if len(self._first) < LAPS:
            self._first.append(lap)
        found = find_stragglers(self._first, self._latest, self._stages)
        new = [one for one in found if one.rank not in self._told]
        self._told.update(one.rank for one in new)
        return new


def _lap(began: Mapping[int, Effort], ended: Mapping[int, Effort]) -> Lap | None:
    """What lies between two answers; None while that is too little to judge."""
    looks = {rank: ended[rank].looks - began[rank].looks for rank in ended}
    first_step = min(one.step for one in began.values())
    steps = min(one.step for one in ended.values()) - first_step
    if steps < LAP_STEPS or min(looks.values()) < LAP_LOOKS:
        return None
    at_work = {rank: ended[rank].at_work - began[rank].at_work for rank in ended}
    shares = {rank: at_work[rank] / looks[rank] for rank in ended}
    return Lap(first_step, min(looks.values()), shares)

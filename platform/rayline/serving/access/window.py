"""How much was taken lately: arithmetic over a clock that is passed in."""

from __future__ import annotations

import datetime
from collections import deque
from typing import Protocol

from rayline.spec.access import Period

WINDOW_S = 60.0
SLOT_S = 0.25
"""Moments this near to each other are counted as one. What was taken leaves the window up to one
slot late, never early: 0.4 % of a minute's limit at most is withheld by it."""


class Tally(Protocol):
    """What has been taken of one limit."""

    def used(self, now_s: float) -> int:
        """How much is taken at present."""

    def take(self, amount: int, now_s: float) -> int:
        """Count `amount`, and say in which slot: what is given back names it."""

    def give_back(self, amount: int, slot: int) -> None:
        """Uncount what was not used. A slot that counts no more is left alone."""

    def wait_s(self, amount: int, limit: int, now_s: float) -> float | None:
        """Seconds until `amount` more fits under `limit`; None: never by waiting."""

    def reset_s(self, now_s: float) -> float | None:
        """Seconds until nothing is taken any more, if nothing else comes; None: never."""


def tally(period: Period) -> Tally:
    """An empty tally of a period."""
    return SlidingWindow() if period == "minute" else Calendar(period)


class SlidingWindow:
    """What was taken in the last minute, whatever minute that is.

    A bucket that refills (RFC 2697) lets through twice its limit in the minute after a rest,
    a counter of clock minutes twice its limit around the turn; this one never more than the limit
    in any 60 s. It costs one small entry a slot in use, 241 at most.
    """

    __slots__ = ("_slots", "_used")

    def __init__(self) -> None:
        self._slots: deque[list[int]] = deque()
        self._used = 0

    def used(self, now_s: float) -> int:
        """See Tally."""
        slots = self._slots
        while slots and _leaves_s(slots[0][0]) <= now_s:
            self._used -= slots.popleft()[1]
        return self._used

    def take(self, amount: int, now_s: float) -> int:
        """See Tally. Where the clock went back, the newest slot takes it."""
        slot = int(now_s / SLOT_S)
        if self._slots and self._slots[-1][0] >= slot:
            slot = self._slots[-1][0]
            self._slots[-1][1] += amount
        else:
            self._slots.append([slot, amount])
        self._used += amount
        return slot

    def give_back(self, amount: int, slot: int) -> None:
        """See Tally."""
        for counted in reversed(self._slots):
            if counted[0] == slot:
                returned = min(amount, counted[1])
                counted[1] -= returned
                self._used -= returned
            if counted[0] <= slot:
                return

    def wait_s(self, amount: int, limit: int, now_s: float) -> float | None:
        """See Tally."""
        if amount > limit:
            return None
        over = self.used(now_s) + amount - limit
        if over <= 0:
            return 0.0
        for slot, counted in self._slots:
            over -= counted
            if over <= 0:
                return _leaves_s(slot) - now_s
        return WINDOW_S

    def reset_s(self, now_s: float) -> float | None:
        """See Tally."""
        return _leaves_s(self._slots[-1][0]) - now_s if self.used(now_s) else 0.0


def _leaves_s(slot: int) -> float:
    """When all that was taken in a slot is a whole window old."""
    return (slot + 1) * SLOT_S + WINDOW_S


class Calendar:
    """What was taken in this day, this month, or ever. Its slot is the period's first second."""

    __slots__ = ("_period", "_start_s", "_used")

    def __init__(self, period: Period) -> None:
        self._period = period
        self._start_s = 0
        self._used = 0

    def used(self, now_s: float) -> int:
        """See Tally."""
        start_s = period_start_s(self._period, now_s)
        if start_s > self._start_s:
            self._start_s, self._used = start_s, 0
        return self._used

    def take(self, amount: int, now_s: float) -> int:
        """See Tally."""
        self._used = self.used(now_s) + amount
        return self._start_s

    def give_back(self, amount: int, slot: int) -> None:
        """See Tally."""
        if slot == self._start_s:
            self._used = max(0, self._used - amount)

    def wait_s(self, amount: int, limit: int, now_s: float) -> float | None:
        """See Tally."""
        if amount > limit:
            return None
        return 0.0 if self.used(now_s) + amount <= limit else self.reset_s(now_s)

    def reset_s(self, now_s: float) -> float | None:
        """See Tally."""
        end_s = _period_end_s(self._period, now_s)
        return None if end_s is None else end_s - now_s


def period_start_s(period: Period, now_s: float) -> int:
    """First second (Unix time) of the day or month that holds `now_s`, in UTC; 0 for total."""
    today = datetime.datetime.fromtimestamp(now_s, datetime.UTC).replace(
        hour=0, minute=0, second=0, microsecond=0
    )
    if period == "day":
        return int(today.timestamp())
    if period == "month":
        return int(today.replace(day=1).timestamp())
    return 0


def _period_end_s(period: Period, now_s: float) -> int | None:
    if period == "total":
        return None
    # 32 days after the first of a month lie in the next one.
    within = 1 if period == "day" else 32
    return period_start_s(period, period_start_s(period, now_s) + within * 86_400)

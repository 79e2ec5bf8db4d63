"""FairQueue: who is next where the engines are full.

Start-time fair queueing between the keys of one priority class: each waiting request gets a start
tag, the later of the queue's virtual time and the finish tag of the key's request before it; its
finish tag lies cost / weight behind its start; the smallest start tag goes first, and the virtual
time is the start tag of what went last. However many requests a key sends, it gets the share of its
weight while others wait. Classes are strict: while a request of a higher class waits, no lower one
goes.

Source: Goyal, Vin, Cheng, "Start-time Fair Queueing" (SIGCOMM 1996), section 2.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from rayline.serving.access import refusals
from rayline.serving.access.keys import ANONYMOUS, ApiKey
from rayline.serving.requests import Refusal
from rayline.spec.access import PRIORITIES, Priority

Item = TypeVar("Item")

_PACE_SHARE = 0.1
"""How much the newest interval counts in the mean one between two that left."""
_FEW = 64
"""Entries that are not worth looking through."""
_MAX_WAIT_S = 60.0
"""Longest Retry-After: what a queue looks like after that, nobody knows."""


@dataclass(order=True, slots=True)
class Ticket(Generic[Item]):
    """One who waits. `FairQueue.leave` takes it."""

    start: float
    number: int
    """Of arrival: what starts alike goes in this order."""
    item: Item = field(compare=False)
    key_id: str = field(compare=False)
    priority: Priority = field(compare=False)
    waiting: bool = field(default=True, compare=False)


@dataclass(frozen=True, slots=True)
class Joined(Generic[Item]):
    """Who waits now, and who does no longer because of it."""

    ticket: Ticket[Item]
    displaced: Ticket[Item] | None


@dataclass(slots=True)
class _Class(Generic[Item]):
    heap: list[Ticket[Item]] = field(default_factory=list)
    finish: dict[str, float] = field(default_factory=dict)
    """By key id: the finish tag of its last request."""
    time: float = 0.0
    waiting: int = 0
    prune_at: int = _FEW

    def prune(self) -> None:
        """Forget tickets that left and keys that the virtual time has overtaken, whenever twice as
        much is kept as the last time: memory follows what waits, at a constant cost a request."""
        if not self.waiting:
            # As the paper ends a busy period: who comes next starts where the last one finished.
            self.time = max(self.finish.values(), default=self.time)
            self.heap, self.finish = [], {}
        kept = len(self.heap) + len(self.finish)
        if kept > self.prune_at:
            self.heap = [ticket for ticket in self.heap if ticket.waiting]
            heapq.heapify(self.heap)
            self.finish = {key: tag for key, tag in self.finish.items() if tag > self.time}
            self.prune_at = 2 * (len(self.heap) + len(self.finish)) + _FEW


class FairQueue(Generic[Item]):
    """Requests that wait for an engine, fair between keys, bounded for each and in all.

    Decides only: the gateway holds what waits and wakes it. Times are any clock's seconds.
    """

    def __init__(self, *, max_waiting: int, max_waiting_per_key: int) -> None:
        self._max_waiting = max_waiting
        self._max_per_key = max_waiting_per_key
        self._classes: dict[Priority, _Class[Item]] = {name: _Class() for name in PRIORITIES}
        self._by_key: Counter[str] = Counter()
        self._waiting = 0
        self._numbers = itertools.count()
        self._left_at_s: float | None = None
        self._interval_s = 0.0

    def __len__(self) -> int:
        return self._waiting

    def join(self, key: ApiKey, cost: int, item: Item, now_s: float) -> Joined[Item] | Refusal:
        """Wait, or hear at once that too many do already. `cost` is in tokens, at least 1.

        Where all places are taken, one of a lower class is given up for it: the caller refuses
        `displaced` with `refusal`.
        """
        # All who bring no key are one key here; what bounds them is the whole.
        if key is not ANONYMOUS and self._by_key[key.id] >= self._max_per_key:
            return refusals.queue_full(f"{self._max_per_key} requests of this key", self.wait_s())
        displaced = None
        if len(self) >= self._max_waiting:
            displaced = self._last_below(key.priority)
            if displaced is None:
                return self.refusal()
            self.leave(displaced)
        queue = self._classes[key.priority]
        start = max(queue.time, queue.finish.get(key.id, 0.0))
        queue.finish[key.id] = start + max(1, cost) / key.weight
        ticket = Ticket(start, next(self._numbers), item, key.id, key.priority)
        heapq.heappush(queue.heap, ticket)
        queue.waiting += 1
        self._by_key[key.id] += 1
        self._waiting += 1
        return Joined(ticket, displaced)

    def leave(self, ticket: Ticket[Item]) -> None:
        """Wait no longer: the client has gone, or has waited for too long. Does nothing for one who
        waits no more."""
        if ticket.waiting:
            self._forget(ticket)
            self._classes[ticket.priority].prune()

    def next(self, now_s: float) -> Ticket[Item] | None:
        """Whose turn it is, who waits no more then; None where nobody waits."""
        for queue in self._classes.values():
            while queue.heap:
                ticket = heapq.heappop(queue.heap)
                if ticket.waiting:
                    queue.time = ticket.start
                    self._forget(ticket)
                    queue.prune()
                    self._pace(now_s)
                    return ticket
        return None

    def refusal(self) -> Refusal:
        """What one hears for whom there is no place."""
        return refusals.queue_full(f"{self._max_waiting} requests", self.wait_s())

    def wait_s(self) -> float:
        """How long all that wait will take, as the last ones went."""
        return min(_MAX_WAIT_S, len(self) * self._interval_s)

    def _forget(self, ticket: Ticket[Item]) -> None:
        ticket.waiting = False
        self._classes[ticket.priority].waiting -= 1
        self._by_key[ticket.key_id] -= 1
        self._waiting -= 1
        if not self._by_key[ticket.key_id]:
            del self._by_key[ticket.key_id]

    def _last_below(self, priority: Priority) -> Ticket[Item] | None:
        """Who of the lowest class would go last, where that class is below `priority`."""
        for name in reversed(PRIORITIES[PRIORITIES.index(priority) + 1 :]):
            waiting = [ticket for ticket in self._classes[name].heap if ticket.waiting]
            if waiting:
                return max(waiting)
        return None

    def _pace(self, now_s: float) -> None:
        if self._left_at_s is not None:
            interval_s = max(0.0, now_s - self._left_at_s)
            self._interval_s += _PACE_SHARE * (interval_s - self._interval_s)
        # Between the last who waits and the next who does, nobody was held up.
        self._left_at_s = now_s if len(self) else None

"""The one authority over what keys and teams may still take.

Gateways ask it for slices and admit requests from what they hold (quota.py), so that most requests
ask nobody. No more than a limit is ever dealt out; what an idle gateway holds meanwhile is a small
share of it and comes back within a second. So each limit is held within SLICE_SHARE from either
side, however the traffic is spread.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from rayline.serving.access.window import WINDOW_S, Tally, period_start_s, tally
from rayline.spec.access import Period

logger = logging.getLogger(__name__)

SLICE_SHARE = 0.04
"""Of a limit, what all gateways together may hold unused: a limit is promised within 5 %."""
_GATEWAY_GONE_S = 60.0
"""A gateway that has not asked for so long counts no more in the size of slices."""
_PAST_AGAIN_S = 5.0
"""After a store that did not answer, how long it is not asked again."""

Kind = Literal["key", "team"]
Measure = Literal["requests", "tokens"]


@dataclass(frozen=True, slots=True)
class Account:
    """One thing that is counted: of a key (by id) or a team (by name)."""

    kind: Kind
    holder: str
    measure: Measure
    period: Period = "minute"


@dataclass(frozen=True, slots=True)
class Ask:
    """What a gateway lacks."""

    account: Account
    limit: int
    """As the gateway's copy of the key says; the newest one counts."""
    need: int
    """What the requests that wait for it need together."""
    single: int
    """What the largest of them needs."""


@dataclass(frozen=True, slots=True)
class Spare:
    """Granted, and not used."""

    account: Account
    slot: int
    """As the grant said."""
    amount: int


@dataclass(frozen=True, slots=True)
class Excess:
    """Used, though it was not granted: an answer took more than was held for it."""

    account: Account
    amount: int


Settled = Spare | Excess


@dataclass(frozen=True, slots=True)
class Grant:
    """What a gateway gets of what it asked for."""

    amount: int
    """May be used up to quota.LEASE_S from now. Less than `need`: there is no more."""
    slot: int
    """In which slot of the tally it was counted."""
    remaining: int
    """What is left for all gateways."""
    wait_s: float | None
    """Until there is enough for `single`; None: never by waiting."""
    reset_s: float | None
    """Until nothing of the limit is taken, if nobody asks meanwhile; None: never."""


class Past(Protocol):
    """What the ledger has of the time before an account was first asked for. Raises whatever the
    store raises; times are Unix time."""

    def minute(
        self, account: Account, since_s: float, until_s: float
    ) -> Sequence[tuple[float, int]]:
        """Moments in order, and how much was taken at each."""

    def total(self, account: Account, since_s: float, until_s: float) -> int:
        """Everything that was taken."""


@dataclass(slots=True)
class _Book:
    tally: Tally
    opened_s: float
    complete: bool = False
    """Whether what was taken before it was opened is in it."""


class Allowances:
    """Deals out slices of every limit. One in a cluster; many threads may ask.

    `past` tells what was taken before it began, so that nobody's budget is new after a restart;
    without it everything begins at nothing. `clock` is Unix time in seconds.
    """

    def __init__(self, past: Past | None = None, clock: Callable[[], float] = time.time) -> None:
        self._past = past
        self._clock = clock
        self._books: dict[Account, _Book] = {}
        self._gateways: dict[str, float] = {}
        self._ask_past_at_s = 0.0
        self._lock = threading.Lock()

    def lease(
        self, gateway: str, asks: Sequence[Ask], settled: Sequence[Settled] = ()
    ) -> tuple[Grant, ...]:
        """One grant for each of `asks`, in their order, after `settled` is in the books.

        Called by every gateway, by a name of its own: when its hand is empty, and to give back.
        """
        with self._lock:
            now_s = self._clock()
            gateways = self._present(gateway, now_s)
            for entry in settled:
                taken = self._tally(entry.account, now_s)
                if isinstance(entry, Spare):
                    taken.give_back(entry.amount, entry.slot)
                else:
                    taken.take(entry.amount, now_s)
            return tuple(self._grant(ask, gateways, now_s) for ask in asks)

    def _grant(self, ask: Ask, gateways: int, now_s: float) -> Grant:
        taken = self._tally(ask.account, now_s)
        free = max(0, ask.limit - taken.used(now_s))
        amount = min(free, max(ask.need, int(ask.limit * SLICE_SHARE / gateways)))
        wait_s = taken.wait_s(ask.single, ask.limit, now_s)
        slot = taken.take(amount, now_s)
        return Grant(amount, slot, free - amount, wait_s, taken.reset_s(now_s))

    def _present(self, gateway: str, now_s: float) -> int:
        """How many gateways there are, this one among them."""
        self._gateways[gateway] = now_s
        gone = [name for name, seen_s in self._gateways.items() if now_s - seen_s > _GATEWAY_GONE_S]
        for name in gone:
            del self._gateways[name]
        return len(self._gateways)

    def _tally(self, account: Account, now_s: float) -> Tally:
        book = self._books.get(account)
        if book is None:
            book = self._books[account] = _Book(tally(account.period), now_s)
        if self._past is not None and not book.complete and now_s >= self._ask_past_at_s:
            self._complete(self._past, account, book, now_s)
        return book.tally

    def _complete(self, past: Past, account: Account, book: _Book, now_s: float) -> None:
        """Put in the book what was taken before it was opened. A store that is away stops nobody:
        it is asked again later."""
        try:
            before = _before(past, account, book.opened_s)
        # Whatever the database's driver raises.
        except Exception as wrong:  # noqa: BLE001
            self._ask_past_at_s = now_s + _PAST_AGAIN_S
            logger.warning("what was used before is not known yet: %s", type(wrong).__name__)
            return
        fresh = tally(account.period)
        for at_s, amount in [*before, (now_s, book.tally.used(now_s))]:
            fresh.take(amount, at_s)
        book.tally, book.complete = fresh, True


def _before(past: Past, account: Account, until_s: float) -> Sequence[tuple[float, int]]:
    if account.period == "minute":
        return past.minute(account, until_s - WINDOW_S, until_s)
    since_s = period_start_s(account.period, until_s)
    return [(until_s, past.total(account, since_s, until_s))]

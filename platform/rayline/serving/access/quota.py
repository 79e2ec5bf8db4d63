"""A gateway's half of the quotas: what is in its hand, and what each request takes of it.

A request takes one from each limit on requests and its tokens (prompt and the answer that is held
for it) from each limit on tokens, of its key and of its team: all of them or none. At its end what
it did not use goes back. Where the hand suffices nothing is awaited; else one question to the
authority (allowances.py) serves all that wait meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from rayline.serving.access import refusals
from rayline.serving.access.allowances import (
    Account,
    Allowances,
    Ask,
    Excess,
    Grant,
    Kind,
    Measure,
    Settled,
    Spare,
)
from rayline.serving.access.hand import Hand, Taken
from rayline.serving.access.keys import NO_LIMITS, ApiKey, Limits
from rayline.serving.requests import Refusal

logger = logging.getLogger(__name__)

AUTHORITY_TIMEOUT_S = 1.0
AUTHORITY_AGAIN_S = 1.0
"""How long an authority that did not answer is not asked again."""
_ROUNDS = 3
"""Questions for one request: others may take what was granted for it, but not for ever."""

Lease = Callable[[str, Sequence[Ask], Sequence[Settled]], Awaitable[Sequence[Grant]]]
"""Reaches Allowances.lease, wherever it is. Raises whatever the way there raises."""


def lease_from(allowances: Allowances) -> Lease:
    """The way to an authority in this process. It may ask a database, so it runs in a thread."""

    async def lease(
        gateway: str, asks: Sequence[Ask], settled: Sequence[Settled]
    ) -> Sequence[Grant]:
        return await asyncio.to_thread(allowances.lease, gateway, asks, settled)

    return lease


@dataclass(frozen=True, slots=True)
class Admission:
    """A request that may go on, until `Quota.settle`."""

    tokens: int
    """What is held for it."""
    headers: Mapping[str, str]
    """OpenAI's x-ratelimit-*, for the answer."""
    taken: tuple[Taken, ...] = field(default=(), repr=False)
    """From which slices; Quota's own."""


@dataclass(frozen=True, slots=True)
class Denial:
    """A request that has to wait, and why."""

    refusal: Refusal
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Demand:
    account: Account
    limit: int
    need: int


class Quota:
    """Admits the requests of one gateway. Belongs to one event loop.

    `gateway` is a name that no other gateway has. While the authority cannot be reached this
    gateway is its own, over the whole of each limit: serving goes on, less exactly. `clock` is Unix
    time in seconds.
    """

    def __init__(
        self, lease: Lease, *, gateway: str, clock: Callable[[], float] = time.time
    ) -> None:
        self._lease = lease
        self._gateway = gateway
        self._clock = clock
        self._hands: dict[Account, Hand] = {}
        self._spares: dict[tuple[Account, int], int] = {}
        self._excess: dict[Account, int] = {}
        self._wanted: dict[Account, Ask] = {}
        self._round: asyncio.Task[None] | None = None
        self._next_round: asyncio.Task[None] | None = None
        self._own: Allowances | None = None
        self._authority_at_s = 0.0

    async def admit(self, key: ApiKey, tokens: int) -> Admission | Denial:
        """Let one request of at most `tokens` (prompt and held answer) through, or say why not.

        Called once a request, before it goes to an engine; an Admission is settled at its end.
        """
        demands = _demands(key, tokens)
        for demand in demands:
            if demand.need > demand.limit and demand.account.period == "minute":
                refusal = refusals.too_large(demand.account.kind, demand.limit, demand.need)
                return Denial(refusal, self._headers(demands, self._clock()))
        lacking: Sequence[_Demand] = ()
        for _ in range(_ROUNDS):
            now_s = self._clock()
            lacking = [one for one in demands if self._hand(one).held(now_s) < one.need]
            if not lacking:
                return self._take(tokens, demands, now_s)
            refused = [one for one in lacking if self._hand(one).refused_until_s > now_s]
            if refused:
                return self._denial(refused, demands, now_s)
            await self._ask(lacking)
        return self._denial(lacking, demands, self._clock())

    def settle(self, admission: Admission, used_tokens: int) -> None:
        """Say what an admitted request has used; what it did not use can be had by others.

        Called once for each Admission, however the request ended. The request itself stays
        counted. More than was held is charged to the present.
        """
        now_s = self._clock()
        over = used_tokens - admission.tokens
        back: dict[Account, int] = {}
        for taken in reversed(admission.taken):
            account = taken.hand.account
            if account.measure != "tokens":
                continue
            if account not in back:
                back[account] = max(0, -over)
                if over > 0:
                    self._excess[account] = self._excess.get(account, 0) + over
            amount = min(taken.amount, back[account])
            back[account] -= amount
            spare = taken.put_back(amount, now_s) if amount else None
            if spare is not None:
                self._spare(spare)

    async def flush(self) -> None:
        """Give back what has lain in the hand for too long, and what was settled.

        Called about twice a second, and at the end.
        """
        now_s = self._clock()
        for hand in self._hands.values():
            for spare in hand.expired(now_s):
                self._spare(spare)
        if self._spares or self._excess:
            await self._leased(())

    def _take(self, tokens: int, demands: Sequence[_Demand], now_s: float) -> Admission:
        taken = tuple(part for one in demands for part in self._hand(one).take(one.need, now_s))
        return Admission(tokens, self._headers(demands, now_s), taken)

    def _hand(self, demand: _Demand) -> Hand:
        hand = self._hands.get(demand.account)
        if hand is None:
            hand = self._hands[demand.account] = Hand(demand.account, remaining=demand.limit)
        return hand

    def _spare(self, spare: Spare) -> None:
        place = (spare.account, spare.slot)
        self._spares[place] = self._spares.get(place, 0) + spare.amount

    async def _ask(self, lacking: Sequence[_Demand]) -> None:
        """Return once the authority has been asked for what is lacking, together with whatever
        others lack meanwhile. A client that leaves takes no one else's answer with it."""
        for demand in lacking:
            before = self._wanted.get(demand.account)
            self._wanted[demand.account] = Ask(
                demand.account,
                demand.limit,
                need=demand.need + (before.need if before else 0),
                single=max(demand.need, before.single if before else 0),
            )
        if self._next_round is None:
            self._next_round = asyncio.create_task(self._one_round(self._round))
        await asyncio.shield(self._next_round)

    async def _one_round(self, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait([before])
        self._round, self._next_round = self._next_round, None
        wanted, self._wanted = self._wanted, {}
        now_s = self._clock()
        asks = [replace(ask, need=self._short_of(ask, now_s)) for ask in wanted.values()]
        grants = await self._leased(asks)
        now_s = self._clock()
        for ask, grant in zip(asks, grants, strict=True):
            hand = self._hands.setdefault(ask.account, Hand(ask.account, remaining=ask.limit))
            hand.receive(ask, grant, now_s)

    def _short_of(self, ask: Ask, now_s: float) -> int:
        hand = self._hands.get(ask.account)
        return max(1, ask.need - (hand.held(now_s) if hand else 0))

    async def _leased(self, asks: Sequence[Ask]) -> Sequence[Grant]:
        """The grants of the authority, or of this gateway itself where that does not answer."""
        own, settled = self._own, self._settled()
        if self._clock() >= self._authority_at_s:
            try:
                async with asyncio.timeout(AUTHORITY_TIMEOUT_S):
                    # What is settled was dealt out by whoever was asked at last.
                    theirs = settled if own is None else ()
                    grants = await self._lease(self._gateway, asks, theirs)
            # Ray's errors, a timeout, whatever lies on the way.
            except Exception as wrong:  # noqa: BLE001
                self._authority_at_s = self._clock() + AUTHORITY_AGAIN_S
                why = type(wrong).__name__
                logger.warning("quota: no authority (%s); this gateway admits by itself", why)
            else:
                if own is not None:
                    logger.warning("quota: the authority answers again")
                    self._turn_to(None)
                return grants
        if own is None:
            own, settled = Allowances(clock=self._clock), []
            self._turn_to(own)
        return own.lease(self._gateway, asks, settled)

    def _settled(self) -> list[Settled]:
        settled: list[Settled] = [
            Spare(account, slot, amount) for (account, slot), amount in self._spares.items()
        ]
        settled += [Excess(account, amount) for account, amount in self._excess.items()]
        self._spares, self._excess = {}, {}
        return settled

    def _turn_to(self, own: Allowances | None) -> None:
        """Another authority from now on: slices of the one before are worth nothing to it."""
        self._own = own
        for hand in self._hands.values():
            hand.retired = True
        self._hands = {}
        self._spares = {}

    def _denial(
        self, refused: Sequence[_Demand], demands: Sequence[_Demand], now_s: float
    ) -> Denial:
        """Of several limits that are used up, the one that lasts longest is named."""
        waits = [(self._wait_s(one, now_s), one) for one in refused]
        wait_s, worst = max(waits, key=lambda pair: math.inf if pair[0] is None else pair[0])
        account = worst.account
        if account.period == "minute":
            refusal = refusals.over_rate(
                account.kind, account.measure, worst.limit, worst.need, wait_s or 0.0
            )
        else:
            refusal = refusals.over_budget(account.kind, account.period, worst.limit, wait_s)
        return Denial(refusal, self._headers(demands, now_s))

    def _wait_s(self, demand: _Demand, now_s: float) -> float | None:
        free_at_s = self._hand(demand).free_at_s
        return None if free_at_s is None else max(0.0, free_at_s - now_s)

    def _headers(self, demands: Sequence[_Demand], now_s: float) -> Mapping[str, str]:
        """OpenAI's rate-limit headers: of requests and tokens a minute, whichever of the key's and
        the team's limit leaves less."""
        tightest: dict[Measure, tuple[int, _Demand]] = {}
        for one in demands:
            account = one.account
            if account.period == "minute":
                hand = self._hand(one)
                left = min(one.limit, hand.remaining + hand.held(now_s))
                if account.measure not in tightest or left < tightest[account.measure][0]:
                    tightest[account.measure] = (left, one)
        headers: dict[str, str] = {}
        for measure, (left, one) in tightest.items():
            reset_s = max(0.0, (self._hand(one).reset_at_s or now_s) - now_s)
            headers[f"x-ratelimit-limit-{measure}"] = str(one.limit)
            headers[f"x-ratelimit-remaining-{measure}"] = str(left)
            headers[f"x-ratelimit-reset-{measure}"] = refusals.duration_text(reset_s)
        return headers


def _demands(key: ApiKey, tokens: int) -> list[_Demand]:
    """What a request takes of every limit there is."""
    demands = _of_one("key", key.id, key.limits, tokens)
    if key.team is not None:
        demands += _of_one("team", key.team, key.team_limits, tokens)
    return demands


def _of_one(kind: Kind, holder: str, limits: Limits, tokens: int) -> list[_Demand]:
    if limits is NO_LIMITS:
        return []
    demands = []
    if limits.requests_per_min is not None:
        demands.append(_Demand(Account(kind, holder, "requests"), limits.requests_per_min, 1))
    if limits.tokens_per_min is not None:
        demands.append(_Demand(Account(kind, holder, "tokens"), limits.tokens_per_min, tokens))
    if limits.budget_tokens is not None:
        account = Account(kind, holder, "tokens", limits.budget_period)
        demands.append(_Demand(account, limits.budget_tokens, tokens))
    return demands

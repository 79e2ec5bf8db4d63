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
from rayline.serving.access.keys import ApiKey
from rayline.serving.requests import Refusal
from rayline.spec.access import Limits

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
    """What is held for it, prompt and answer."""
    headers: Mapping[str, str]
    """OpenAI's x-ratelimit-*, for the answer."""
    held: tuple[Taken, ...] = field(default=(), repr=False)
    """The same of each limit on tokens; Quota's own."""


@dataclass(frozen=True, slots=True)
class Denial:
    """A request that has to wait, and why."""

    refusal: Refusal
    headers: Mapping[str, str]


@dataclass(slots=True)
class _Demand:
    """What one request needs of one limit."""

    hand: Hand
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
        self._known: dict[str, tuple[ApiKey, list[tuple[Hand, int]]]] = {}
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
        demands: Sequence[_Demand] = ()
        lacking: Sequence[_Demand] = ()
        for _ in range(_ROUNDS):
            now_s = self._clock()
            # Anew each time: the hands are others after another authority has taken over.
            demands = self._demands(key, tokens)
            lacking = [one for one in demands if one.hand.held(now_s) < one.need]
            if not lacking:
                return self._take(tokens, demands, now_s)
            denial = self._too_large(lacking, demands, now_s)
            if denial is not None:
                return denial
            refused = [one for one in lacking if one.hand.refused_until_s > now_s]
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
        unused = admission.tokens - used_tokens
        for taken in admission.held:
            if unused > 0:
                for spare in taken.put_back(unused, now_s):
                    self._spare(spare)
            elif unused < 0:
                account = taken.hand.account
                self._excess[account] = self._excess.get(account, 0) - unused

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

    def _demands(self, key: ApiKey, tokens: int) -> list[_Demand]:
        """What a request takes of every limit there is."""
        known = self._known.get(key.id)
        if known is None or known[0] is not key:
            hands = [(self._hand(account, limit), limit) for account, limit in _accounts(key)]
            known = self._known[key.id] = (key, hands)
        return [
            _Demand(hand, limit, tokens if hand.account.measure == "tokens" else 1)
            for hand, limit in known[1]
        ]

    def _take(self, tokens: int, demands: Sequence[_Demand], now_s: float) -> Admission:
        taken = [one.hand.take(one.need, now_s) for one in demands]
        held = tuple(part for part in taken if part.hand.account.measure == "tokens")
        return Admission(tokens, self._headers(demands, now_s), held)

    def _hand(self, account: Account, limit: int) -> Hand:
        hand = self._hands.get(account)
        if hand is None:
            hand = self._hands[account] = Hand(account, remaining=limit)
        return hand

    def _spare(self, spare: Spare) -> None:
        place = (spare.account, spare.slot)
        self._spares[place] = self._spares.get(place, 0) + spare.amount

    async def _ask(self, lacking: Sequence[_Demand]) -> None:
        """Return once the authority has been asked for what is lacking, together with whatever
        others lack meanwhile. A client that leaves takes no one else's answer with it."""
        for demand in lacking:
            account = demand.hand.account
            before = self._wanted.get(account)
            self._wanted[account] = Ask(
                account,
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
            self._hand(ask.account, ask.limit).receive(ask, grant, now_s)

    def _short_of(self, ask: Ask, now_s: float) -> int:
        return max(1, ask.need - self._hand(ask.account, ask.limit).held(now_s))

    async def _leased(self, asks: Sequence[Ask]) -> Sequence[Grant]:
        """The grants of the authority, or of this gateway itself where that does not answer."""
        settled, why = self._settled(), ""
        if self._own is None or self._clock() >= self._authority_at_s:
            # What is settled was dealt out by whoever was asked at last.
            theirs = settled if self._own is None else []
            try:
                async with asyncio.timeout(AUTHORITY_TIMEOUT_S):
                    grants = await self._lease(self._gateway, asks, theirs)
            # Ray's errors, a timeout, whatever lies on the way.
            except Exception as wrong:  # noqa: BLE001
                self._authority_at_s = self._clock() + AUTHORITY_AGAIN_S
                settled = [] if theirs else settled
                why = f"away ({type(wrong).__name__})"
            else:
                if self._own is not None:
                    self._turn_to(None, "back")
                return grants
        own = self._own
        if own is None:
            own = Allowances(clock=self._clock)
            self._turn_to(own, why)
        return own.lease(self._gateway, asks, settled)

    def _settled(self) -> list[Settled]:
        settled: list[Settled] = [
            Spare(account, slot, amount) for (account, slot), amount in self._spares.items()
        ]
        settled += [Excess(account, amount) for account, amount in self._excess.items()]
        self._spares, self._excess = {}, {}
        return settled

    def _turn_to(self, own: Allowances | None, why: str) -> None:
        """Another authority from now on: slices of the one before are worth nothing to it."""
        who = "the authority" if own is None else "this gateway"
        logger.warning("quota: the authority is %s; %s admits from now on", why, who)
        self._own = own
        for hand in self._hands.values():
            hand.retired = True
        self._hands, self._known, self._spares = {}, {}, {}

    def _too_large(
        self, lacking: Sequence[_Demand], demands: Sequence[_Demand], now_s: float
    ) -> Denial | None:
        """A request that no minute has room for is told so, rather than to wait."""
        for one in lacking:
            account = one.hand.account
            if one.need > one.limit and account.period == "minute":
                refusal = refusals.too_large(account.kind, one.limit, one.need)
                return Denial(refusal, self._headers(demands, now_s))
        return None

    def _denial(
        self, refused: Sequence[_Demand], demands: Sequence[_Demand], now_s: float
    ) -> Denial:
        """Of several limits that are used up, the one that lasts longest is named."""
        worst = max(
            refused, key=lambda one: math.inf if one.hand.free_at_s is None else one.hand.free_at_s
        )
        account, free_at_s = worst.hand.account, worst.hand.free_at_s
        wait_s = None if free_at_s is None else max(0.0, free_at_s - now_s)
        if account.period == "minute":
            refusal = refusals.over_rate(
                account.kind, account.measure, worst.limit, worst.need, wait_s or 0.0
            )
        else:
            refusal = refusals.over_budget(account.kind, account.period, worst.limit, wait_s)
        return Denial(refusal, self._headers(demands, now_s))

    def _headers(self, demands: Sequence[_Demand], now_s: float) -> Mapping[str, str]:
        """OpenAI's rate-limit headers: of requests and tokens a minute, whichever of the key's and
        the team's limit leaves less."""
        tightest: dict[Measure, tuple[int, _Demand]] = {}
        for one in demands:
            account = one.hand.account
            if account.period == "minute":
                left = min(one.limit, one.hand.remaining + one.hand.held(now_s))
                if account.measure not in tightest or left < tightest[account.measure][0]:
                    tightest[account.measure] = (left, one)
        headers: dict[str, str] = {}
        for measure, (left, one) in tightest.items():
            reset_s = max(0.0, (one.hand.reset_at_s or now_s) - now_s)
            headers[f"x-ratelimit-limit-{measure}"] = str(one.limit)
            headers[f"x-ratelimit-remaining-{measure}"] = str(left)
            headers[f"x-ratelimit-reset-{measure}"] = refusals.duration_text(reset_s)
        return headers


def _accounts(key: ApiKey) -> list[tuple[Account, int]]:
    """Every limit that a key's requests count against."""
    accounts = _of_one("key", key.id, key.limits)
    if key.team is not None:
        accounts += _of_one("team", key.team, key.team_limits)
    return accounts


def _of_one(kind: Kind, holder: str, limits: Limits) -> list[tuple[Account, int]]:
    accounts = []
    if limits.requests_per_min is not None:
        accounts.append((Account(kind, holder, "requests"), limits.requests_per_min))
    if limits.tokens_per_min is not None:
        accounts.append((Account(kind, holder, "tokens"), limits.tokens_per_min))
    if limits.budget_tokens is not None:
        budget = Account(kind, holder, "tokens", limits.budget_period)
        accounts.append((budget, limits.budget_tokens))
    return accounts

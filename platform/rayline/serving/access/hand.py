"""What a gateway holds of one limit: slices that the authority dealt out, for a second each."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from rayline.serving.access.allowances import Account, Ask, Grant, Spare

LEASE_S = 1.0
"""How long a slice may lie in the hand; then it goes back."""
RETRY_S = 0.25
"""How long a gateway takes the authority's no for an answer: what others did not use may come back
at any moment."""


@dataclass(slots=True)
class Slice:
    """A part of one grant."""

    amount: int
    slot: int
    """As the grant said."""
    until_s: float


@dataclass(slots=True)
class Hand:
    """What this gateway may still use of one account. Times are the gateway's Unix time."""

    account: Account
    remaining: int
    """What all gateways together may still be given, as of the last grant."""
    slices: deque[Slice] = field(default_factory=deque)
    reset_at_s: float | None = 0.0
    """When nothing of the limit is taken any more; None: never."""
    refused_until_s: float = 0.0
    """Until then the authority need not be asked again."""
    free_at_s: float | None = 0.0
    """When there is enough for what was refused; None: never by waiting."""
    retired: bool = False
    """The authority that dealt it is not asked any more, so nothing goes back to it."""

    def held(self, now_s: float) -> int:
        """What may be used now."""
        return sum(part.amount for part in self.slices if part.until_s > now_s)

    def take(self, amount: int, now_s: float) -> Taken:
        """Use `amount`, which is held, of the oldest slices first."""
        parts: list[tuple[Slice, int]] = []
        for part in self.slices:
            if part.until_s > now_s and part.amount and amount:
                used = min(part.amount, amount)
                part.amount -= used
                amount -= used
                parts.append((part, used))
        return Taken(self, parts)

    def receive(self, ask: Ask, grant: Grant, now_s: float) -> None:
        """Take up the authority's answer."""
        newest = self.slices[-1] if self.slices else None
        if newest is not None and newest.slot == grant.slot and newest.until_s > now_s:
            newest.amount += grant.amount
        elif grant.amount:
            self.slices.append(Slice(grant.amount, grant.slot, now_s + LEASE_S))
        self.remaining = grant.remaining
        self.reset_at_s = None if grant.reset_s is None else now_s + grant.reset_s
        if grant.amount < ask.need:
            self.free_at_s = None if grant.wait_s is None else now_s + grant.wait_s
            self.refused_until_s = now_s + RETRY_S

    def expired(self, now_s: float) -> Iterator[Spare]:
        """Lay down the slices that have lain for too long."""
        while self.slices and self.slices[0].until_s <= now_s:
            part = self.slices.popleft()
            if part.amount:
                yield Spare(self.account, part.slot, part.amount)


@dataclass(slots=True)
class Taken:
    """What one request has of one limit."""

    hand: Hand
    parts: list[tuple[Slice, int]]

    def put_back(self, amount: int, now_s: float) -> Iterator[Spare]:
        """Return what was not used: to its slice while that is valid, else to the authority."""
        if self.hand.retired:
            return
        for part, used in reversed(self.parts):
            back = min(used, amount)
            amount -= back
            if part.until_s > now_s:
                part.amount += back
            elif back:
                yield Spare(self.hand.account, part.slot, back)

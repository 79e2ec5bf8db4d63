"""Requests for one model that no replica takes now: whose turn it is, and how long one waits."""

from __future__ import annotations

import asyncio

from rayline.serving.access.fair_queue import FairQueue, Ticket
from rayline.serving.access.keys import ApiKey
from rayline.serving.requests import Refusal, RefusedError

Turn = asyncio.Future[Refusal | None]
"""Done when a replica may be free, or with the refusal of one whose place was given up."""


class WaitingRoom:
    """Fair between keys (access/fair_queue.py). Used within the gateway's event loop."""

    def __init__(self, max_waiting: int, max_per_key: int) -> None:
        self._queue: FairQueue[Turn] = FairQueue(
            max_waiting=max_waiting, max_waiting_per_key=max_per_key
        )

    def __len__(self) -> int:
        return len(self._queue)

    async def wait(self, key: ApiKey, tokens: int, limit_s: float) -> bool:
        """Whether it is this request's turn, within `limit_s`. Raises RefusedError, at once, where
        too many wait already."""
        loop = asyncio.get_running_loop()
        turn: Turn = loop.create_future()
        joined = self._queue.join(key, tokens, turn, loop.time())
        if isinstance(joined, Refusal):
            raise RefusedError(joined)
        if joined.displaced is not None:
            joined.displaced.item.set_result(self._queue.refusal())
        return await self._turn(joined.ticket, limit_s)

    async def _turn(self, ticket: Ticket[Turn], limit_s: float) -> bool:
        try:
            await asyncio.wait({ticket.item}, timeout=limit_s)
        finally:
            self._queue.leave(ticket)
        if not ticket.item.done():
            return False
        if (refusal := ticket.item.result()) is not None:
            raise RefusedError(refusal)
        return True

    def wake(self) -> None:
        """A replica may be free: the next one looks."""
        ticket = self._queue.next(asyncio.get_running_loop().time())
        if ticket is not None and not ticket.item.done():
            ticket.item.set_result(None)

    def refusal(self) -> Refusal:
        """What one hears who has waited for too long."""
        return self._queue.refusal()

"""One request's way through the fleet, until it is answered.

A replica may be lost at any moment. As long as nothing has been sent the request is put to another
one as it is; a stream of which some has been sent goes on elsewhere where it can (survival.py), and
otherwise ends with an error event. No answer ends as if it were whole when it is not.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import AsyncGenerator
from time import perf_counter

from rayline.serving.gateway.fleet import Connected, Connections, Wanted
from rayline.serving.gateway.survival import way_on
from rayline.serving.requests import Refusal, RefusedError, unavailable
from rayline.serving.wire import Ask, Call, Item, LostReplicaError, Piece, Usage, WholeAnswer

logger = logging.getLogger(__name__)

MAX_LOSSES = 8
"""Replicas that one request may lose. One that kills what answers it must not go round the fleet
for ever."""


class Journey:
    """Iterated once, by the task that answers the client."""

    def __init__(self, ask: Ask, wanted: Wanted, fleet: Connections) -> None:
        self._ask = ask
        self._fleet = fleet
        self._wanted = wanted
        self._call: Call | None = None
        self.model = wanted.model
        """Whose replicas answer."""
        self.name = wanted.name
        """What the client asked for: the model, or an adapter of it."""
        self.begun_s = perf_counter()
        self._emitted: list[int] = []
        self._sent = self._ended = self._whole = False
        self.left = False
        """Whether the client has gone."""
        self.refused = False
        """Whether the engine refused it for the client's own fault."""
        self.failed = False
        """Whether it ended in an error of ours."""
        self.losses = 0
        """Replicas that were lost under it."""
        self.version: int | None = None
        """The version that answers."""
        self.usage = Usage()
        """Complete once the way has ended."""
        self.first_s: float | None = None
        """From its begin to the first token."""
        self.last_s: float | None = None
        """From its begin to the last token."""

    @property
    def tokens(self) -> int:
        """Tokens whose text was sent."""
        return len(self._emitted)

    def leave(self) -> None:
        """The client has gone: end the computation. What it took is still waited for."""
        self.left = True
        if self._call is not None:
            self._call.cancel()

    async def items(self) -> AsyncGenerator[list[Item], None]:
        """What there is to send, as it comes. Raises RefusedError where nobody takes it."""
        while True:
            try:
                replica = await self._fleet.place(self._wanted)
            except RefusedError as wrong:
                self.failed = True
                if not self._sent:
                    raise
                yield [wrong.refusal]
                return
            try:
                async for items in self._answered_by(replica):
                    yield items
                return
            except LostReplicaError as wrong:
                if self._whole:
                    return
                refusal = self._go_elsewhere(replica, wrong)
            finally:
                self._fleet.freed(self._wanted.model)
            if refusal is not None:
                self.failed = True
                yield [refusal]
                return

    async def _answered_by(self, replica: Connected) -> AsyncGenerator[list[Item], None]:
        self.version = replica.served.version
        call = self._call = replica.caller.ask(self._ask)
        try:
            if self.left:
                call.cancel()
            while not call.finished:
                items = await call.items()
                self._note(items)
                yield items
        finally:
            call.cancel()

    def _note(self, items: list[Item]) -> None:
        now_s = perf_counter() - self.begun_s
        for item in items:
            if isinstance(item, Usage):
                self.usage = item
                continue
            if isinstance(item, Piece):
                self._sent = True
                self._emitted += item.tokens
                self._ended = item.ended
            else:
                self._whole = True
            if isinstance(item, Refusal):
                self.refused, self.failed = item.status < 500, item.status >= 500
            if isinstance(item, WholeAnswer) or (isinstance(item, Piece) and item.tokens):
                self.first_s = now_s if self.first_s is None else self.first_s
                self.last_s = now_s

    def _go_elsewhere(self, replica: Connected, wrong: LostReplicaError) -> Refusal | None:
        """Prepare to go on, or say why that is not possible."""
        self.losses += 1
        logger.warning(
            "request %s lost replica %s after %d tokens: %s",
            self._ask.request_id,
            replica.address.replica,
            len(self._emitted),
            wrong,
        )
        self._wanted = dataclasses.replace(
            self._wanted, avoid=self._wanted.avoid | {replica.address.replica}
        )
        if self.losses > MAX_LOSSES:
            return unavailable("The replicas that worked on this request were lost.")
        if not self._sent:
            return None
        way = way_on(self._ask.route, self._ask.tree)
        if way is None:
            return unavailable("The replica that worked on this request was lost. Try again.")
        self._wanted = dataclasses.replace(self._wanted, version=self.version)
        self._ask = dataclasses.replace(
            self._ask,
            emitted=tuple(self._emitted),
            repeat=way == "begin again",
            ended=self._ended,
        )
        return None

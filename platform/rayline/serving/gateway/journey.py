"""One request's way through the fleet, until it is answered.

A replica may be lost at any moment. As long as nothing has been sent the request is put to another
one as it is; a stream of which some has been sent goes on elsewhere where it can (survival.py), and
otherwise ends with an error event. No answer ends as if it were whole when it is not.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from time import perf_counter

from rayline.serving.gateway.answered import Prompt
from rayline.serving.gateway.fleet import Connected, Connections, Wanted
from rayline.serving.gateway.splitting import pages_in, prompt_alone, with_pages
from rayline.serving.gateway.survival import way_on
from rayline.serving.requests import Refusal, RefusedError, Tree, unavailable
from rayline.serving.wire import Ask, Call, Item, LostReplicaError, Piece, Usage, WholeAnswer

logger = logging.getLogger(__name__)

MAX_LOSSES = 8
"""Replicas that one request may lose. One that kills what answers it must not go round the fleet
for ever."""


@dataclass(frozen=True, slots=True)
class _Pages:
    """A prompt that one replica has computed for another."""

    version: int
    """Whose replicas can read them."""
    tree: Tree
    """Where they lie, in the engine's words."""
    usage: Usage


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
        self._prompt_usage: Usage | None = None
        self.left = False
        """Whether the client has gone."""
        self.refused = False
        """Whether the engine refused it for the client's own fault."""
        self.failed = False
        """Whether it ended in an error of ours."""
        self.losses = 0
        """Replicas that were lost under it."""
        self.prompt: Prompt = "here"
        """Who computed it."""
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
            pages = await self._pages()
            try:
                replica = await self._fleet.place(self._wanted)
            except RefusedError as wrong:
                self.failed = True
                if not self._sent:
                    raise
                yield [wrong.refusal]
                return
            try:
                async for items in self._answered_by(replica, pages):
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

    async def _pages(self) -> _Pages | None:
        """The prompt, computed by a replica that does only that; None where there is none that
        does it, or it did not work: then whoever answers computes it."""
        replica = None if self._sent else self._fleet.prefill(self._wanted)
        if replica is None:
            return None
        self.prompt, found, usage = "again", None, Usage()
        try:
            call = self._call = replica.caller.ask(prompt_alone(self._ask))
            if self.left:
                call.cancel()
            while not call.finished:
                for item in await call.items():
                    if isinstance(item, WholeAnswer):
                        found = pages_in(item)
                    elif isinstance(item, Usage):
                        usage = item
        except LostReplicaError as wrong:
            logger.warning("request %s: its prompt is lost: %s", self._ask.request_id, wrong)
            return None
        return None if found is None else _Pages(replica.served.version, found, usage)

    async def _answered_by(
        self, replica: Connected, pages: _Pages | None
    ) -> AsyncGenerator[list[Item], None]:
        self.version = replica.served.version
        ask = self._ask
        if pages is not None and pages.version == self.version:
            ask = with_pages(ask, pages.tree)
            self.prompt, self._prompt_usage = "elsewhere", pages.usage
        call = self._call = replica.caller.ask(ask)
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
                self.usage = self._whole_usage(item)
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

    def _whole_usage(self, usage: Usage) -> Usage:
        """With what another replica did for the prompt. Its pages are none that a cache had."""
        prompt = self._prompt_usage
        if prompt is None:
            return usage
        return dataclasses.replace(
            usage,
            cached_tokens=prompt.cached_tokens,
            waited_ms=usage.waited_ms + prompt.waited_ms,
            computed_ms=usage.computed_ms + prompt.computed_ms,
        )

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

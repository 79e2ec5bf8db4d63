"""A gateway's end of the wire: one connection to one replica, many requests over it."""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
from collections import deque
from typing import cast

from rayline.errors import ServingError
from rayline.serving.wire.exchange import Ask, Item, Load, Usage
from rayline.serving.wire.frames import Kind, Reader, Writer, pack_ask, unpack_item, unpack_load

logger = logging.getLogger(__name__)

SILENCE_S = 15.0
"""A replica speaks twice a second. After this long without a word its host is gone: a host that
loses its power closes no connection."""


class LostReplicaError(Exception):
    """The replica, or the way to it, is gone; what it was asked can be asked elsewhere."""


class Call:
    """One request under way. Iterated by one task."""

    def __init__(self, caller: Caller, number: int) -> None:
        self._caller = caller
        self._number = number
        self._items: deque[Item | LostReplicaError] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self.ended = False
        """Whether the last item has come."""
        self.finished = False
        """Whether the last item has been handed out."""

    def put(self, item: Item | LostReplicaError) -> None:
        """Called by the connection."""
        self.ended = isinstance(item, Usage | LostReplicaError)
        self._items.append(item)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def items(self) -> list[Item]:
        """All that has come since the last call, at least one. Raises LostReplicaError once what
        came before the loss has been handed out."""
        if not self._items:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
            self._waiter = None
        found: list[Item] = []
        while self._items:
            if isinstance(self._items[0], LostReplicaError):
                if not found:
                    raise self._items[0]
                break
            found.append(self._items.popleft())  # type: ignore[arg-type]
        self.finished = self.ended and not self._items
        return found

    def cancel(self) -> None:
        """The client has gone. The usage still comes."""
        if not self.ended:
            self._caller.cancel(self._number)


class Caller(asyncio.Protocol):
    """A connection to one replica. Used within one event loop."""

    def __init__(self, secret: str) -> None:
        self._secret = secret.encode()
        self._reader = Reader()
        self._numbers = itertools.count(1)
        self._calls: dict[int, Call] = {}
        self._heard_s = 0.0
        self.load = Load()
        """What the replica said of itself last."""
        self.leaving = False
        """Whether it takes no more requests."""
        self.lost = asyncio.get_running_loop().create_future()
        """Done once the connection is gone."""

    @staticmethod
    async def connect(host: str, port: int, secret: str, timeout_s: float = 5.0) -> Caller:
        """A connection that is up. Raises LostReplicaError where nobody answers."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout_s):
                _, caller = await loop.create_connection(lambda: Caller(secret), host, port)
        except OSError as wrong:
            raise LostReplicaError(f"{host}:{port}: {wrong}") from None
        return caller

    @property
    def open_requests(self) -> int:
        """Requests of this gateway that the replica has not ended."""
        return len(self._calls)

    def ask(self, ask: Ask) -> Call:
        """Begin a request. Raises LostReplicaError where the connection is gone."""
        if self.lost.done():
            raise LostReplicaError("the connection is closed")
        number = next(self._numbers)
        call = self._calls[number] = Call(self, number)
        self._writer.write(Kind.ASK, number, pack_ask(ask))
        return call

    def cancel(self, number: int) -> None:
        """Called by a Call."""
        if number in self._calls:
            self._writer.write(Kind.CANCEL, number)

    def close(self) -> None:
        """Hang up."""
        self._writer.flush()
        self._transport.close()

    def check(self, now_s: float) -> None:
        """Give a silent replica up. Called now and then, with the loop's time."""
        if now_s - self._heard_s > SILENCE_S and not self.lost.done():
            logger.warning("a replica has said nothing for %g s", SILENCE_S)
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        # libuv's transports are none of asyncio's classes, only of their shape.
        self._transport = cast("asyncio.Transport", transport)
        connection = transport.get_extra_info("socket")
        if connection is not None:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._writer = Writer(self._transport)
        self._writer.write(Kind.HELLO, 0, self._secret)
        self._heard_s = asyncio.get_running_loop().time()

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        self._heard_s = asyncio.get_running_loop().time()
        try:
            for kind, request, payload in self._reader.feed(data):
                self._take(kind, request, payload)
        except (ServingError, ValueError, TypeError, KeyError):
            logger.exception("a replica speaks no frames of ours")
            self._transport.abort()

    def connection_lost(self, wrong: Exception | None) -> None:
        """Called by the event loop: every open request hears of it at once."""
        self.leaving = True
        self.lost.set_result(None)
        calls, self._calls = list(self._calls.values()), {}
        for call in calls:
            call.put(LostReplicaError(str(wrong or "the replica hung up")))

    def _take(self, kind: int, request: int, payload: memoryview) -> None:
        if kind == Kind.LOAD:
            self.load = unpack_load(payload)
        elif kind == Kind.LEAVING:
            self.leaving = True
        elif (call := self._calls.get(request)) is not None:
            if kind == Kind.LOST:
                del self._calls[request]
                call.put(LostReplicaError("the replica's engine is gone"))
            elif (item := unpack_item(kind, payload)) is not None:
                if kind == Kind.USAGE:
                    del self._calls[request]
                call.put(item)

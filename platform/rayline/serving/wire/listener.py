"""A replica's end of the wire: it answers the gateways that know the fleet's secret."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import logging
import socket
from typing import cast

from rayline.errors import ServingError
from rayline.serving.requests import engine_failed
from rayline.serving.wire.exchange import Ask, Engine, Item
from rayline.serving.wire.frames import Kind, Reader, Writer, pack_item, pack_value, unpack_ask

logger = logging.getLogger(__name__)

LOAD_PERIOD_S = 0.5
"""How often a gateway hears how busy the engine is; of its own requests it knows at once."""

_CROSSING_S = 0.2
"""For how long requests may still come from a gateway that has been told to send no more."""


class Listener:
    """Listens on one address. Used within one event loop."""

    def __init__(self, engine: Engine, secret: str) -> None:
        self._engine = engine
        self._secret = secret.encode()
        self._server: asyncio.Server | None = None
        self._gateways: set[_Gateway] = set()
        self._leaving = False

    async def open(self, host: str) -> tuple[str, int]:
        """Listen on a free port of `host`, one of this node's addresses; which one it became."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: _Gateway(self._engine, self._secret, self._gateways), host, 0
        )
        found = self._server.sockets[0].getsockname()
        return str(found[0]), int(found[1])

    def leave(self) -> None:
        """Tell every gateway to send no more requests."""
        self._leaving = True
        for gateway in self._gateways:
            gateway.leave()

    async def drain(self, limit_s: float) -> bool:
        """Whether all requests have ended, at the latest after `limit_s`."""
        self.leave()
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + limit_s
        # A gateway may have sent more before it heard of that.
        await asyncio.sleep(min(_CROSSING_S, limit_s))
        while (tasks := self._tasks()) and (left_s := deadline_s - loop.time()) > 0:
            await asyncio.wait(tasks, timeout=left_s)
        return not self.open_requests

    def _tasks(self) -> list[asyncio.Task[None]]:
        return [task for gateway in self._gateways for task in gateway.tasks.values()]

    @property
    def open_requests(self) -> int:
        """Requests that are being answered."""
        return len(self._tasks())

    def close(self) -> None:
        """Hang up. Gateways take what is open to another replica."""
        if self._server is not None:
            self._server.close()
        for gateway in list(self._gateways):
            gateway.hang_up()


class _Gateway(asyncio.Protocol):
    """One gateway that has called."""

    def __init__(self, engine: Engine, secret: bytes, known: set[_Gateway]) -> None:
        self._engine = engine
        self._secret = secret
        self._known = known
        self._reader = Reader()
        self.tasks: dict[int, asyncio.Task[None]] = {}
        """Requests under way, by their number."""
        self._loads: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the event loop."""
        # libuv's transports are none of asyncio's classes, only of their shape.
        self._transport = cast("asyncio.Transport", transport)
        connection = transport.get_extra_info("socket")
        if connection is not None:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._writer = Writer(self._transport)

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        try:
            for kind, request, payload in self._reader.feed(data):
                self._take(kind, request, payload)
        # Whoever speaks otherwise is no gateway of ours, or not of our version.
        except (ServingError, ValueError, TypeError, KeyError):
            logger.warning("hung up on a caller that speaks no frames of ours")
            self.hang_up()

    def connection_lost(self, _: Exception | None) -> None:
        """Called by the event loop: the gateway has gone, and so have its clients."""
        self._known.discard(self)
        for task in [*self.tasks.values(), *([self._loads] if self._loads else [])]:
            task.cancel()

    def leave(self) -> None:
        """Ask for no more requests."""
        self._writer.write(Kind.LEAVING, 0)

    def hang_up(self) -> None:
        """Close the connection, what is written first."""
        self._writer.flush()
        self._transport.close()

    def _take(self, kind: int, request: int, payload: memoryview) -> None:
        if self._loads is None:
            if kind != Kind.HELLO or not hmac.compare_digest(bytes(payload), self._secret):
                raise ServingError("wire", "the caller does not know the fleet's secret")
            self._known.add(self)
            self._loads = asyncio.get_running_loop().create_task(self._tell_loads())
        elif kind == Kind.ASK:
            task = asyncio.get_running_loop().create_task(self._serve(request, unpack_ask(payload)))
            self.tasks[request] = task
            task.add_done_callback(lambda _: self.tasks.pop(request, None))
        elif kind == Kind.CANCEL and request in self.tasks:
            self.tasks[request].cancel()

    async def _serve(self, request: int, ask: Ask) -> None:
        answer = self._engine.answer(ask)
        try:
            async with contextlib.aclosing(answer):
                async for item in answer:
                    self._send(request, item)
        except asyncio.CancelledError:
            self._send(request, self._engine.usage_of(ask.request_id))
        except ServingError:
            # The engine is gone, and this replica with it: another one can go on.
            self._writer.write(Kind.LOST, request)
        # Whatever a request makes the engine raise, it must end for the client and for no other.
        except Exception:
            logger.exception("request %s failed", ask.request_id)
            self._send(request, engine_failed())
            self._send(request, self._engine.usage_of(ask.request_id))

    def _send(self, request: int, item: Item) -> None:
        kind, payload = pack_item(item)
        self._writer.write(kind, request, payload)

    async def _tell_loads(self) -> None:
        while True:
            self._writer.write(Kind.LOAD, 0, pack_value(self._engine.load()))
            await asyncio.sleep(LOAD_PERIOD_S)

"""The gateway as a Serve deployment: an actor that answers HTTP on a socket of its own.

Serve starts it, replaces it and tells it to stop; its HTTP proxies are not started at all. Several
gateways of a node share the port (SO_REUSEPORT: the kernel deals connections out).
"""

from __future__ import annotations

import asyncio
import socket
import uuid
from collections.abc import Sequence

import uvicorn
from ray.serve.handle import DeploymentHandle

from rayline.errors import ServingError
from rayline.serving.access.allowances import Ask, Grant, Settled
from rayline.serving.director.fleet import Fleet, GatewayReport
from rayline.serving.gateway.connection import BoundedConnection
from rayline.serving.gateway.front import Front
from rayline.serving.gateway.http import openai_app
from rayline.serving.loop import LoopThread
from rayline.spec import GatewaySpec

_BACKLOG = 2048
_KEEP_ALIVE_S = 75
"""Longer than the pools of clients keep a connection that is idle: a connection that is closed
while a request is on its way is a failed request."""


class Gateway:
    """Made by Ray Serve, in an actor of its own."""

    # Serve awaits a constructor that is a coroutine.
    async def __init__(self, spec: GatewaySpec, director: DeploymentHandle) -> None:  # type: ignore[misc]
        self._director = director
        self._spec = spec
        self._thread = LoopThread("gateway")
        self._front = await self._thread.run(self._open())
        config = uvicorn.Config(
            openai_app(self._front),
            http=BoundedConnection,
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            date_header=False,
            # Who asks is read from the header itself, where the spec trusts who wrote it.
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=int(spec.drain_s),
        )
        self._server = uvicorn.Server(config)
        listening = _listen(spec.host, spec.port)
        self._serving = asyncio.create_task(self._thread.run(self._server.serve([listening])))
        self._keeping = asyncio.create_task(self._thread.run(self._front.keep()))

    async def _open(self) -> Front:
        name = uuid.uuid4().hex[:12]
        # A gateway that is alone deals out by itself: nothing to ask for, and nobody to wait for.
        lease = self._lease if self._spec.replicas > 1 else None
        return Front.open(self._spec, name, self._sync, lease)

    async def _sync(self, report: GatewayReport) -> Fleet:
        fleet: Fleet = await self._director.sync.remote(report)
        return fleet

    async def _lease(
        self, gateway: str, asks: Sequence[Ask], settled: Sequence[Settled]
    ) -> Sequence[Grant]:
        granted: Sequence[Grant] = await self._director.lease.remote(gateway, asks, settled)
        return granted

    async def check_health(self) -> None:
        """Raise where nothing answers any more. Called by Serve's controller."""
        for task in (self._serving, self._keeping):
            if task.done():
                raise ServingError("gateway", "has stopped") from task.exception()

    async def __del__(self) -> None:
        """Say so, take no more connections, let answers end, close. Called by Serve."""
        if hasattr(self, "_server"):
            self._front.leaving = True
            # Where nothing is served any more nobody has to be led elsewhere.
            await asyncio.sleep(self._spec.notice_s if self._front.fleet.ready else 0)
            self._server.should_exit = True
            await asyncio.wait({self._serving})
            self._keeping.cancel()
            await self._thread.run(self._front.close())


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listening.bind((host, port))
    listening.listen(_BACKLOG)
    return listening

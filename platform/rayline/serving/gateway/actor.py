"""The gateway as a Serve deployment: an actor that answers HTTP on a socket of its own.

Serve starts it, replaces it and tells it to stop; its HTTP proxies are not started at all. Several
gateways of a node share the port (SO_REUSEPORT: the kernel deals connections out).
"""

from __future__ import annotations

import asyncio
import socket
import uuid

import uvicorn
from ray.serve.handle import DeploymentHandle

from rayline.errors import ServingError
from rayline.serving.director.fleet import Fleet, GatewayReport
from rayline.serving.gateway.fleet import Connections
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
        self._thread = LoopThread("gateway")
        self._fleet = await self._thread.run(self._connections(spec))
        config = uvicorn.Config(
            openai_app(self._fleet),
            http="httptools",
            ws="none",
            lifespan="off",
            access_log=False,
            log_config=None,
            server_header=False,
            date_header=False,
            proxy_headers=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=int(spec.drain_s),
        )
        self._server = uvicorn.Server(config)
        self._listening = _listen(spec.host, spec.port)
        self._serving = asyncio.create_task(self._thread.run(self._server.serve([self._listening])))
        self._keeping = asyncio.create_task(self._thread.run(self._fleet.keep()))

    async def _connections(self, spec: GatewaySpec) -> Connections:
        return Connections(
            self._sync, uuid.uuid4().hex[:12], max_queued=spec.max_queued, hold_s=spec.hold_s
        )

    async def _sync(self, report: GatewayReport) -> Fleet:
        fleet: Fleet = await self._director.sync.remote(report)
        return fleet

    async def check_health(self) -> None:
        """Raise where nothing answers any more. Called by Serve's controller."""
        for task in (self._serving, self._keeping):
            if task.done():
                raise ServingError("gateway", "has stopped") from task.exception()

    async def __del__(self) -> None:
        """Take no more connections, let answers end, close. Called by Serve."""
        if hasattr(self, "_server"):
            self._server.should_exit = True
            await asyncio.wait({self._serving})
            self._keeping.cancel()


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listening.bind((host, port))
    listening.listen(_BACKLOG)
    return listening

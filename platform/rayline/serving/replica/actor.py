"""One replica: an engine in a Serve actor, in the fleet once it has generated a real token.

It listens on a socket of its own and tells the director where. So Serve starts it, places it,
judges its health, replaces and stops it, and no request goes through Serve.

An engine that dies takes the replica out of every gateway at once: the socket closes, and what was
under way goes on elsewhere. Serve hears of it at its next health check and starts another.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
import uuid

import ray
from ray import serve
from ray.serve.handle import DeploymentHandle

from rayline.errors import ServingError
from rayline.serving.director.fleet import REPORT_PERIOD_S, ReplicaAddress, ReplicaReport, Served
from rayline.serving.loop import LoopThread
from rayline.serving.replica.publishing import Publishing
from rayline.serving.replica.starting import start_engine
from rayline.serving.requests import Tree
from rayline.serving.settings import APP, DIRECTOR, LOOPBACK
from rayline.serving.wire import Listener
from rayline.spec import AdapterSpec, Device, Role, ServeSpec

logger = logging.getLogger(__name__)

_WATCH_PERIOD_S = 0.25
_STOPPED_S = 2.0
"""A turn of this process's own that comes so late tells that it was stopped meanwhile."""


class Replica:
    """Answers gateways with one engine. Made by Ray Serve, in an actor of its own."""

    # Serve awaits a constructor that is a coroutine.
    async def __init__(  # type: ignore[misc]
        self,
        spec_tree: Tree,
        device: Device,
        served: Served,
        role: Role | None = None,
        _beside: DeploymentHandle | None = None,  # which Serve has to start with this one
    ) -> None:
        self._spec = ServeSpec.parse(spec_tree)
        self._served = served
        self._thread = LoopThread("engine")
        self._engine = await self._thread.run(
            start_engine(self._spec, device, role, _own_address())
        )
        self._publishing = Publishing(self._engine, self._spec)
        self._following: asyncio.Task[None] | None = None
        self._probe: asyncio.Task[None] | None = None
        self._probed_at_s = 0.0
        self._director = serve.get_deployment_handle(DIRECTOR, APP)
        self._secret = secrets.token_hex(16)
        self._listener = Listener(self._engine, self._secret)
        host, port = await self._thread.run(self._listener.open(_own_address()))
        self._address = ReplicaAddress(
            replica=uuid.uuid4().hex[:12],
            host=host,
            port=port,
            secret=self._secret,
            max_ongoing_requests=self._spec.max_ongoing_requests,
            role=role,
        )
        self._reports = asyncio.create_task(self._report())
        self._watch = asyncio.create_task(self._watch_engine())

    async def _report(self) -> None:
        while True:
            published = self._publishing
            report = ReplicaReport(
                self._served,
                self._address,
                self._engine.load(),
                published.names,
                published.failures,
            )
            # A director that is being replaced hears of it a second later.
            with contextlib.suppress(Exception):
                self._follow(await self._director.report.remote(report))
            await asyncio.sleep(REPORT_PERIOD_S)

    def _follow(self, wanted: tuple[AdapterSpec, ...] | None) -> None:
        """Load and withdraw adapters, beside the reports. None where the director was not told,
        because a config file of Serve's deployed this: then they are as the spec says."""
        if self._following is None or self._following.done():
            adapters = self._spec.engine.adapters if wanted is None else wanted
            following = self._thread.run(self._publishing.follow(adapters))
            self._following = asyncio.create_task(following)

    async def _watch_engine(self) -> None:
        looked_s = time.monotonic()
        # vLLM has a flag for it and no event.
        while not self._engine.dead:
            await asyncio.sleep(_WATCH_PERIOD_S)
            now_s = time.monotonic()
            if now_s - looked_s > _STOPPED_S:
                # Nobody computed either, where the whole machine was stopped.
                self._probed_at_s += now_s - looked_s
            looked_s = now_s
        logger.error("the engine has died; this replica takes no more requests")
        self._reports.cancel()
        self._thread.loop.call_soon_threadsafe(self._listener.close)

    async def check_health(self) -> None:
        """Raise where the engine is dead, or has generated no token for longer than
        health_timeout_s, though it was asked to. Called by Serve's controller, which replaces the
        replica after three failures in a row.

        One question is kept open until it is answered, so an engine that stays frozen fails the
        second and third check at once. A frozen one is taken out of the gateways, too: it holds the
        requests that it has, and would hold those that come.
        """
        if self._engine.dead:
            raise ServingError("engine", "has died")
        if self._probe is None or self._probe.done():
            self._probe = asyncio.create_task(self._thread.run(self._engine.probe()))
            self._probed_at_s = time.monotonic()
        while not self._probe.done() and (left_s := self._probe_left_s()) > 0:
            await asyncio.wait({self._probe}, timeout=left_s)
        if not self._probe.done():
            self._reports.cancel()
            self._thread.loop.call_soon_threadsafe(self._listener.close)
            silent_s = f"{self._spec.health_timeout_s:g} s"
            raise ServingError("engine", f"has generated no token for {silent_s}")
        self._probe.result()

    def _probe_left_s(self) -> float:
        return self._probed_at_s + self._spec.health_timeout_s - time.monotonic()

    async def __del__(self) -> None:
        """Finish what is under way, for drain_s at the longest, and end vLLM's processes. Called by
        Serve once it has decided to stop this replica."""
        if not hasattr(self, "_engine"):
            return
        if hasattr(self, "_listener"):
            self._reports.cancel()
            self._watch.cancel()
            with contextlib.suppress(Exception):
                await self._director.leave.remote(self._address.replica)
            if not self._engine.dead:
                await self._thread.run(self._listener.drain(self._spec.drain_s))
            self._thread.loop.call_soon_threadsafe(self._listener.close)
        await asyncio.to_thread(self._engine.stop)


def _own_address() -> str:
    """This node's address for gateways: loopback where the cluster is one node, so that nothing
    but the gateway can be reached from outside."""
    alive = [node for node in ray.nodes() if node["Alive"]]
    if len(alive) == 1:
        return LOOPBACK
    return str(ray.util.get_node_ip_address())

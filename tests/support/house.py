"""A gateway over real sockets and real connections, with scripted engines for replicas and no Ray:
what Serve does (start, stop, replace) the tests do by hand."""

from __future__ import annotations

import asyncio
import shutil
import socket
import tempfile
import time
from dataclasses import dataclass, field, replace

import uvicorn

from rayline.serving.director.fleet import (
    Fleet,
    GatewayReport,
    Known,
    ReplicaAddress,
    ReplicaReport,
    Served,
    picture,
)
from rayline.serving.gateway.connection import BoundedConnection
from rayline.serving.gateway.front import Front
from rayline.serving.gateway.http import openai_app
from rayline.serving.loop import LoopThread
from rayline.serving.rollout.choosing import Weights
from rayline.serving.wire import Engine, Listener
from rayline.spec import GatewaySpec, RequestLimits, Role
from support.scripted_engine import ScriptedEngine

SECRET = "s3cret"


@dataclass
class House:
    """Everything that answers, in one event loop."""

    model: str = "bot"
    max_ongoing: int = 64
    max_queued: int = 256
    hold_s: float = 5.0
    cors_origins: tuple[str, ...] = ()
    replicas: dict[str, tuple[Served, Listener, ReplicaAddress, Engine]] = field(
        default_factory=dict
    )
    weights: Weights | None = None
    """None: the newest version gets everything."""
    split_from: int | None = None
    """Tokens of a prompt that another replica computes."""
    taken_away: bool = False
    """Whether the model is."""
    heard: list[GatewayReport] = field(default_factory=list)
    published: tuple[str, ...] = ()
    """Adapters of every version."""
    loaded: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Which of them each replica has."""

    def __post_init__(self) -> None:
        self.folder = tempfile.mkdtemp()
        self.thread = LoopThread("house")
        self.thread.call(self._open())

    async def _open(self) -> None:
        spec = GatewaySpec(
            store=f"sqlite:///{self.folder}/serving.db",
            max_queued=self.max_queued,
            hold_s=self.hold_s,
            cors_origins=self.cors_origins,
        )
        self.front = Front.open(spec, "gateway", self.sync)
        self.connections = self.front.fleet
        listening = socket.socket()
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        self.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        config = uvicorn.Config(
            openai_app(self.front),
            http=BoundedConnection,
            lifespan="off",
            log_config=None,
            access_log=False,
        )
        self.server = uvicorn.Server(config)
        self.serving = asyncio.create_task(self.server.serve([listening]))
        self.keeping = asyncio.create_task(self.front.keep())

    async def sync(self, report: GatewayReport) -> Fleet:
        """The director's part."""
        self.heard.append(report)
        now_s = time.monotonic()
        reports = {}
        for name, (one, _, address, engine) in self.replicas.items():
            known = replace(one, adapters=self.published)
            report = ReplicaReport(known, address, engine.load(), self.loaded.get(name, ()))
            reports[name] = (now_s, report)
        if self.taken_away:
            going = Known(Weights(self.model, None), (), 0.0, frozenset({self.model}))
            return picture({self.model: going}, reports, now_s)
        served = {one.served.version: one.served for _, one in reports.values()}
        if self.weights is None or not served:
            return picture({}, reports, now_s)
        versions = tuple(served[number] for number in sorted(served))
        return picture({self.model: Known(self.weights, versions, self.hold_s)}, reports, now_s)

    def start(
        self,
        name: str,
        engine: Engine | None = None,
        version: int = 1,
        role: Role | None = None,
    ) -> ScriptedEngine:
        """A replica that the gateway is connected to when this returns."""
        engine = engine or ScriptedEngine(name)
        self.thread.call(self._start(name, engine, version, role), timeout_s=10)
        assert isinstance(engine, ScriptedEngine)
        return engine

    def reports(self, model: str) -> dict[int, list[ReplicaReport]]:
        """What the replicas of a model say of themselves, by version."""
        found: dict[int, list[ReplicaReport]] = {}
        for name, (served, _, address, engine) in self.replicas.items():
            if served.model == model:
                report = ReplicaReport(served, address, engine.load(), self.loaded.get(name, ()))
                found.setdefault(served.version, []).append(report)
        return found

    async def _start(self, name: str, engine: Engine, version: int, role: Role | None) -> None:
        listener = Listener(engine, SECRET)
        host, port = await listener.open("127.0.0.1")
        served = Served(
            self.model, version, 64, f"r{version}", RequestLimits(), 0, split_from=self.split_from
        )
        address = ReplicaAddress(name, host, port, SECRET, self.max_ongoing, role)
        self.replicas[name] = (served, listener, address, engine)
        while name not in self.connections.names:
            await asyncio.sleep(0.01)

    def kill(self, name: str) -> None:
        """As a SIGKILL: its sockets close, whatever is under way."""
        _, listener, _, _ = self.replicas.pop(name)
        self.thread.loop.call_soon_threadsafe(listener.close)

    def drain(self, name: str, limit_s: float = 5.0) -> bool:
        """As Serve stops a replica."""
        _, listener, _, _ = self.replicas.pop(name)
        drained = self.thread.call(listener.drain(limit_s))
        self.thread.loop.call_soon_threadsafe(listener.close)
        return drained

    def close(self) -> None:
        """End all of it."""
        for name in list(self.replicas):
            self.kill(name)
        self.thread.call(self._close(), timeout_s=10)
        self.thread.close()
        shutil.rmtree(self.folder)

    async def _close(self) -> None:
        self.server.should_exit = self.server.force_exit = True
        self.keeping.cancel()
        await asyncio.wait({self.serving, self.keeping})
        await self.front.close()

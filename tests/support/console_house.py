"""A console over a real tracking store, and over a gateway whose replicas are scripted (house.py).

The director's part is done by its own values: releases, shares and scaling are those that it would
decide on; only Ray Serve, which would start and stop the replicas, is not there.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager

import uvicorn

from rayline.console import ConsoleSettings
from rayline.console.server import Opened, listening, server_config
from rayline.console.signing import Reception
from rayline.sdk import Client
from rayline.serving import ModelStatus
from rayline.serving.director.blueprint import Blueprint, Event
from rayline.serving.director.hearsay import Hearsay
from rayline.serving.director.served_model import AppState, Heard, ServedModel
from rayline.serving.director.status import model_status
from rayline.serving.rollout import transitions
from rayline.serving.rollout.release import Release
from rayline.serving.rollout.transitions import Change
from rayline.serving.rollout.version import Asked
from rayline.serving.scaling.deciding import Room
from rayline.serving.wire import Ask, Item, Piece, Usage
from rayline.spec import ServeSpec, TrackingSpec
from support.house import House
from support.scripted_engine import ScriptedEngine


class ChattingEngine(ScriptedEngine):
    """Answers a chat by rule: its own name, then the question's words over and over."""

    async def _items(self, ask: Ask) -> AsyncGenerator[Item, None]:
        spoken = [self.name, *str(ask.tree["messages"][-1]["content"]).split()]
        count = ask.tree.get("max_tokens") or 8
        self.usages[ask.request_id] = Usage(len(spoken) - 1, 0, 0)
        for token in range(count):
            await self._generate(ask)
            word = spoken[token % len(spoken)]
            yield Piece(_chunk({"content": f"{word} "}), (token,), token == count - 1)
        yield Piece(b"data: [DONE]\n\n")


def _chunk(delta: dict[str, str]) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": None}
    return f"data: {json.dumps({'choices': [choice]})}\n\n".encode()


class HousedClient(Client):
    """Asks the house where Client asks a cluster."""

    def __init__(self, house: House, tracking: TrackingSpec) -> None:
        super().__init__(tracking=tracking, store=f"sqlite:///{house.folder}/serving.db")
        self.house = house
        self.model = ServedModel(Release(house.model), {})
        self.events: list[Event] = []
        self._hearsay = Hearsay()

    def begin(self, number: int, engine: ScriptedEngine) -> None:
        """Deploy the next version, with one replica; it takes over as its spec says."""
        tree = {
            "name": self.house.model,
            "model": {"directory": f"models/{engine.name}"},
            "rollout": {"steps": [10], "min_requests": 1000},
            "scale": {"max_replicas": 2},
        }
        blueprint = Blueprint(ServeSpec.parse(tree), "cpu", f"r{number}")
        asked = Asked(f"r{number}", f"directory:models/{engine.name}")
        change, begun = self.model.begin(asked, blueprint, time.time())
        assert begun == number
        self._note(change)
        self.model.first_replicas(number, 1)
        self.house.start(engine.name, engine, version=number)
        for _ in range(3):
            self._tick()

    def deployments(self) -> list[str]:
        return [self.house.model]

    def served(self, name: str) -> ModelStatus:
        self._tick()
        return model_status(self.model, self.house.reports(name), {}, 0, self.events)

    def canary(self, name: str, percent: float) -> None:
        self._apply(transitions.aim(self.model.release, percent, time.time()))

    def promote(self, name: str) -> None:
        self._apply(transitions.promote(self.model.release))

    def rollback(self, name: str, *, to: int | None = None) -> None:
        self._apply(transitions.roll_back(self.model.release, time.time(), to=to))

    def _apply(self, change: Change) -> None:
        self.model.apply(change)
        self._note(change)
        self._tick()

    def _note(self, change: Change) -> None:
        if change.said:
            self.events.append(Event(time.time(), change.said))

    def _tick(self) -> None:
        """A second of the director's."""
        model = self.house.model
        while self.house.heard:
            self._hearsay.hear_gateway(self.house.heard.pop(0), {model: self.model})
        reports = self.house.reports(model)
        heard = Heard(
            unix_s=time.time(),
            clock_s=time.monotonic(),
            loads={number: [one.load for one in found] for number, found in reports.items()},
            apps={f"{model}--v{number}": AppState("up", "", 1) for number in reports},
        )
        changes, _ = self.model.tick(heard, lambda *_: Room(0, "the house has one of each"))
        for change in changes:
            self._note(change)
        self.house.weights = self.model.weights


@contextmanager
def console(settings: ConsoleSettings, client: Client) -> Iterator[Opened]:
    """A console on loopback while it lasts."""
    with listening(settings) as opened:
        port = opened.getsockname()[1]
        reception = Reception(client.store, allow_changes=settings.allow_changes)
        server = uvicorn.Server(server_config(settings, client, reception, port))
        thread = threading.Thread(target=server.run, args=([opened],), daemon=True)
        thread.start()
        try:
            yield Opened(f"http://127.0.0.1:{port}", reception.key, settings.allow_changes)
        finally:
            server.should_exit = True
            thread.join(timeout=10)

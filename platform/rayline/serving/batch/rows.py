"""What one engine of a batch does with the rows that Ray Data hands it."""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any, cast

from rayline.errors import RaylineError, ServingError
from rayline.serving.loop import LoopThread
from rayline.serving.replica.publishing import Publishing
from rayline.serving.replica.starting import start_engine
from rayline.serving.requests import (
    Refusal,
    RefusedError,
    Route,
    Tree,
    check_request,
    engine_failed,
    unknown_model,
)
from rayline.serving.wire import Ask, Engine, WholeAnswer
from rayline.spec import Device, RequestLimits, ServeSpec

Columns = dict[str, Any]
"""A block: a sequence of values for each column."""


class EngineRows:
    """An actor of Ray Data's pool, with one engine: columns custom_id, route and body (JSON text)
    become custom_id, status, request_id, body, and failure, an error that ends the batch."""

    def __init__(self, spec_tree: Tree, device: Device) -> None:
        self._spec = ServeSpec.parse(spec_tree)
        self._limits = RequestLimits()
        self._models = {self._spec.name, *(one.name for one in self._spec.engine.adapters)}
        self._thread = LoopThread("engine")
        self._engine: Engine | None = None
        self._failure: RaylineError | None = None
        try:
            self._engine = self._thread.call(self._start(device))
        except RaylineError as wrong:
            # As a value: raised, it would come back wrapped in errors of Ray's, after many tries.
            self._failure = wrong

    async def _start(self, device: Device) -> Engine:
        engine = await start_engine(self._spec, device)
        publishing = Publishing(engine, self._spec)
        await publishing.follow(self._spec.engine.adapters)
        for name, reason in publishing.failures.items():
            await asyncio.to_thread(engine.stop)
            raise ServingError(f"adapter {name}", reason)
        return engine

    async def __call__(self, block: Columns) -> Columns:
        """Answer the rows of a block, all at once. Called by Ray Data."""
        names = ("custom_id", "route", "body")
        rows = zip(*(map(str, block[name]) for name in names), strict=True)
        made = await asyncio.gather(*(self._row(*row) for row in rows))
        return {name: [row[name] for row in made] for name in made[0]}

    async def _row(self, custom_id: str, route: str, body: str) -> Tree:
        request_id = f"req_{uuid.uuid4().hex}"
        row = {"custom_id": custom_id, "request_id": request_id, "failure": self._failure}
        if self._engine is None:
            return {**row, "status": 0, "body": ""}
        asked = self._answer(self._engine, request_id, cast("Route", route), json.loads(body))
        answer = await self._thread.run(asked)
        if isinstance(answer, Refusal):
            return {**row, "status": answer.status, "body": json.dumps(answer.body())}
        return {**row, "status": 200, "body": answer.json_text.decode()}

    async def _answer(
        self, engine: Engine, request_id: str, route: Route, tree: Tree
    ) -> WholeAnswer | Refusal:
        try:
            checked = check_request(route, tree, self._limits)
        except RefusedError as wrong:
            return wrong.refusal
        if checked.model not in self._models:
            return unknown_model(checked.model)
        async for item in engine.answer(Ask(request_id, route, checked.tree)):
            if isinstance(item, WholeAnswer | Refusal):
                return item
        return engine_failed()

    def __del__(self) -> None:
        """End vLLM's processes. Called by Ray Data when the actor is given up."""
        engine = getattr(self, "_engine", None)
        if engine is not None:
            engine.stop()

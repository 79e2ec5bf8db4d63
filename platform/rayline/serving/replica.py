"""One replica: a vLLM engine in a Serve actor, routable once it has generated a real token.

A constructor that has not returned keeps the replica out of the route, so warming up there holds
for the replicas that autoscaling adds, too. (After vLLM says that it is healthy the first request
still took up to 25 s on CPU.)
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

from rayline.errors import ServingError
from rayline.serving.requests import Refusal, Reply, Route, Tree
from rayline.serving.settings import Device, llm_config_fields
from rayline.spec import ServeSpec
from rayline.tracking import resolve_model

if TYPE_CHECKING:
    from rayline.serving.engine import QuietServer

_CAUSE = re.compile(r"^\(\w+ pid=\d+\).*?\] ([A-Za-z_.]*(?:Error|Exception): .+)$", re.MULTILINE)
"""How vLLM logs the last line of a traceback in one of its processes."""
_LOG_TAIL_BYTES = 64 * 1024


class Replica:
    """Answers requests with one engine. Made by Ray Serve, in an actor of its own."""

    # Serve awaits a constructor that is a coroutine.
    async def __init__(self, spec_tree: Tree, device: Device) -> None:  # type: ignore[misc]
        self._spec = ServeSpec.parse(spec_tree)
        folder = await asyncio.to_thread(resolve_model, self._spec.model, self._spec.tracking)
        self._server = await self._start_engine(llm_config_fields(self._spec, folder, device))
        self._touch: asyncio.Task[None] | None = None
        self._touched_at_s = 0.0
        await self._generate_one_token()

    async def _start_engine(self, fields: Tree) -> QuietServer:
        # Imported here and not above: the driver that binds this class needs no vLLM.
        from rayline.serving.engine import start_server

        try:
            return await start_server(fields)
        # What vLLM raises says that a process below it died, not why: that stands in its log.
        except Exception as wrong:
            reason = _cause_in(_own_output()) or f"{type(wrong).__name__}: {wrong}"
            raise ServingError("engine", f"vLLM did not start: {reason}") from wrong

    async def _generate_one_token(self) -> None:
        request = {
            "model": self._spec.name,
            "prompt": "Hello",
            "max_tokens": 1,
            "temperature": 0.0,
        }
        async for reply in self.answer("completions", request):
            if isinstance(reply, Refusal):
                raise ServingError("engine", f"it generated no token: {reply.message}")

    async def answer(self, route: Route, tree: Tree) -> AsyncIterator[Reply]:
        """The pieces of one answer. Called by a gateway; cancelled when its client has gone, which
        ends the computation."""
        async for reply in self._server.answer(route, tree):
            yield reply

    async def check_health(self) -> None:
        """Raise where the engine is dead, or frozen for longer than health_timeout_s. Called by
        Serve's controller, which replaces the replica after three failures in a row.

        One question is kept open until it is answered, so an engine that stays frozen fails the
        second and third check at once.
        """
        await self._server.check_health()
        if self._touch is None or self._touch.done():
            self._touch = asyncio.create_task(self._server.touch())
            self._touched_at_s = time.monotonic()
        waited_s = time.monotonic() - self._touched_at_s
        await asyncio.wait({self._touch}, timeout=max(0.0, self._spec.health_timeout_s - waited_s))
        if not self._touch.done():
            silent_s = f"{self._spec.health_timeout_s:g} s"
            raise ServingError("engine", f"has not answered for {silent_s}")
        self._touch.result()

    def __del__(self) -> None:
        """End vLLM's processes. Called by Serve once the replica has drained."""
        server = getattr(self, "_server", None)
        if server is not None:
            server.stop()


def _own_output() -> str:
    """The end of what this process and its children have written, where Ray keeps that in files."""
    return "\n".join(_tail(Path(f"/proc/self/fd/{stream}")) for stream in (1, 2))


def _tail(file: Path) -> str:
    try:
        with file.resolve().open("rb") as log:
            log.seek(0, os.SEEK_END)
            log.seek(max(0, log.tell() - _LOG_TAIL_BYTES))
            return log.read().decode("utf-8", errors="replace")
    except OSError:
        return ""


def _cause_in(log: str) -> str:
    """The first error that a process of the engine died of; empty where the log names none."""
    found = _CAUSE.search(log)
    return "" if found is None else found.group(1)

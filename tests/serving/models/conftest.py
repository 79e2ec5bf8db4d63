"""Real vLLMs in this process, each as a replica has it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from rayline.serving.loop import LoopThread
from rayline.serving.replica.starting import start_engine
from rayline.serving.requests import Refusal, Route, Tree
from rayline.serving.settings import LOOPBACK, environment, transfer_environment
from rayline.serving.wire import Ask, Engine, Usage, WholeAnswer
from rayline.spec import Role, ServeSpec


@dataclass
class RunningEngine:
    """An engine, and the thread that it lives in."""

    engine: Engine
    thread: LoopThread
    asked: int = 0

    def ask(self, route: Route, tree: Tree) -> tuple[Tree | Refusal, Usage]:
        """The whole answer, or the refusal, and what it took."""
        self.asked += 1
        return self.thread.call(self._ask(Ask(f"test-{self.asked}", route, tree)), timeout_s=120)

    async def _ask(self, ask: Ask) -> tuple[Tree | Refusal, Usage]:
        import json

        answer: Tree | Refusal = {}
        usage = Usage()
        items: AsyncIterator[object] = self.engine.answer(ask)
        async for item in items:
            if isinstance(item, WholeAnswer):
                answer = json.loads(item.json_text)
            elif isinstance(item, Refusal):
                answer = item
            elif isinstance(item, Usage):
                usage = item
        return answer, usage


@pytest.fixture(scope="module")
def running() -> Callable[[ServeSpec], object]:
    """Start an engine as its spec says, within a `with`."""

    @contextmanager
    def start(spec: ServeSpec, role: Role | None = None) -> Iterator[RunningEngine]:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment(spec, "cpu").items():
                patch.setenv(name, value)
            # Set anew where there is a role, and put back afterwards.
            for name in transfer_environment(LOOPBACK, 0):
                patch.delenv(name, raising=False)
                patch.setenv(name, "") if role else None
            thread = LoopThread("engine")
            engine = thread.call(start_engine(spec, "cpu", role), timeout_s=240)
            try:
                yield RunningEngine(engine, thread)
            finally:
                engine.stop()
                thread.close()

    return start

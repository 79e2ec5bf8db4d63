"""vLLM behind OpenAI's requests: ray.serve.llm starts it, vLLM's own OpenAI layer speaks for it.

It imports vLLM, so only a replica imports it, in the process that the engine belongs to.

ray.serve.llm has no public switch for its telemetry (an actor started on the head node, with vLLM
imported in it), nor for who computes (on a CPU always a process beside the engine's), nor a public
way to reach vLLM's OpenAI layer without its own around it, which encodes every answer anew, nor one
to end the engine's processes: all four are reached for here and nowhere else.
tests/serving/test_live.py holds them.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any, cast

import pydantic
from prometheus_client import REGISTRY
from ray.llm._internal.common.callbacks.base import CallbackBase
from ray.llm._internal.serve.engines.vllm.vllm_engine import VLLMEngine
from ray.serve.llm import LLMConfig, LLMServer
from ray.util.placement_group import PlacementGroup
from vllm.config import VllmConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.engine.protocol import EngineClient
from vllm.exceptions import VLLMClientError
from vllm.platforms import current_platform
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.executor.uniproc_executor import UniProcExecutor

from rayline.errors import ServingError
from rayline.serving.replica.adapters import LoadedAdapters
from rayline.serving.replica.continuing import NotContinuedError
from rayline.serving.replica.counting import CURRENT, Tally, count_generations
from rayline.serving.replica.layers import least, put
from rayline.serving.replica.plain_stream import quicken
from rayline.serving.requests import Refusal, engine_failed, refused_by_engine
from rayline.serving.wire import Ask, Item, Load, Piece, Usage, WholeAnswer

_WATCHED = (
    "vllm:num_requests_waiting",
    "vllm:num_requests_running",
    "vllm:kv_cache_usage_perc",
    "vllm:generation_tokens_total",
)
"""Looked at several times a second: vLLM's own reader collects every histogram there is."""


class NothingToDownload(CallbackBase):
    """Tells ray.serve.llm that every node of the replica already has the model."""

    async def on_before_node_init(self) -> None:
        """Called in the replica, before the engine's configuration is made."""
        self.ctx.run_init_node = False


class OneProcess(VLLMEngine):  # type: ignore[misc]
    """ray.serve.llm's engine; on a CPU, a model that is not split is computed by the process that
    schedules it.

    Two processes would take turns there (vLLM schedules no step ahead on a CPU), and the one whose
    turn it is not would spin for the other's answer, on a core that the frontend needs. vLLM's
    reason for two is that the second gets its OpenMP threads bound to cores; ours are not bound
    (settings.environment).
    """

    def _start_async_llm_engine(
        self,
        vllm_engine_args: AsyncEngineArgs,
        vllm_engine_config: VllmConfig,
        placement_group: PlacementGroup,
    ) -> EngineClient:
        parallel = vllm_engine_config.parallel_config
        if current_platform.is_cpu() and parallel.world_size == 1:
            parallel.distributed_executor_backend = UniProcExecutor
        return super()._start_async_llm_engine(
            vllm_engine_args, vllm_engine_config, placement_group
        )


class QuietServer(LLMServer):
    """ray.serve.llm's server; it reports to nobody."""

    async def start(self) -> None:
        """Start the engine and no telemetry. Raises whatever vLLM raises."""
        self.engine = self._engine_cls(self._llm_config)
        await self.engine.start()


class VllmEngine:
    """One vLLM engine, as wire.Engine. Used within the event loop that it was started in."""

    def __init__(self, server: QuietServer, model: str) -> None:
        self._model = model
        started = cast("Any", server.engine)
        self._client: AsyncLLM = started._engine_client
        self._layers = started._app_state
        self._tallies: dict[str, Tally] = {}
        self._probes = self._probed_tokens = 0
        self._adapters = LoadedAdapters(self._client, self._layers.openai_serving_models)
        count_generations(self._client)
        if (chat := getattr(self._layers, "openai_serving_chat", None)) is not None:
            quicken(chat)

    @staticmethod
    async def start(fields: dict[str, Any], model: str) -> VllmEngine:
        """An engine that is up. `fields` are LLMConfig's. Raises whatever vLLM raises."""
        server = cast(
            "QuietServer", QuietServer.sync_init(LLMConfig(**fields), engine_cls=OneProcess)
        )
        await server.start()
        return VllmEngine(server, model)

    async def answer(self, ask: Ask) -> AsyncGenerator[Item, None]:
        """The items of one answer; see wire.Engine. Raises ServingError where the engine is
        gone."""
        tally = self._tallies[ask.request_id] = Tally(ask)
        CURRENT.set(tally)
        try:
            async for item in self._items(ask, tally):
                yield item
        except EngineDeadError as wrong:
            raise ServingError("engine", "is gone") from wrong
        yield self.usage_of(ask.request_id)

    async def _items(self, ask: Ask, tally: Tally) -> AsyncGenerator[Item, None]:
        try:
            made = await put(ask, self._layers)
        except pydantic.ValidationError as wrong:
            yield _wrong_field(wrong)
            return
        except (ValueError, VLLMClientError) as wrong:
            yield refused_by_engine(400, str(wrong), getattr(wrong, "parameter", None))
            return
        if isinstance(made, Refusal | WholeAnswer):
            yield made
        else:
            async for item in _pieces(made, tally):
                yield item

    def usage_of(self, request_id: str) -> Usage:
        """What an answer has taken, also one that was cancelled. Forgets it."""
        tally = self._tallies.pop(request_id, None)
        return Usage() if tally is None else tally.usage()

    def load(self) -> Load:
        """As vLLM's metrics have it since its last step."""
        seen = {
            sample.name: sample.value
            for metric in REGISTRY.restricted_registry(_WATCHED).collect()
            for sample in metric.samples
        }
        return Load(
            waiting=int(seen.get("vllm:num_requests_waiting", 0)),
            # Nobody asked for what it computes to show that it is well.
            generated_tokens=int(seen.get("vllm:generation_tokens_total", 0)) - self._probed_tokens,
            running=max(0, int(seen.get("vllm:num_requests_running", 0)) - self._probes),
            kv_use=float(seen.get("vllm:kv_cache_usage_perc", 0)),
        )

    @property
    def dead(self) -> bool:
        """Whether one of its processes has ended."""
        return bool(self._client.errored)

    async def add_adapter(self, name: str, folder: Path) -> None:
        """See wire.Engine."""
        await self._adapters.add(name, folder)

    async def remove_adapter(self, name: str) -> None:
        """See wire.Engine."""
        await self._adapters.remove(name)

    async def probe(self) -> None:
        """Return once a real token has been generated, however many requests wait: any that comes
        out of the engine meanwhile will do. (An engine that generates none computes a vector.)
        Raises ServingError where the engine is gone."""
        before = self.load().generated_tokens
        ours = asyncio.create_task(self._compute_least())
        try:
            while not ours.done() and self.load().generated_tokens == before:
                await asyncio.wait({ours}, timeout=0.2)
            if ours.done():
                ours.result()
        finally:
            ours.cancel()

    async def _compute_least(self) -> None:
        ask = least(self._layers, self._model)
        self._probes += 1
        try:
            async for item in self.answer(ask):
                if isinstance(item, Refusal):
                    raise ServingError("engine", f"it computed nothing: {item.message}")
                if isinstance(item, Usage):
                    self._probed_tokens += item.completion_tokens
        finally:
            self._probes -= 1
            # Of one that was cut off, because another token came first.
            self._probed_tokens += self.usage_of(ask.request_id).completion_tokens

    def stop(self) -> None:
        """End the engine and its processes. Returns once they are gone."""
        self._client.shutdown()


async def _pieces(events: AsyncIterator[str], tally: Tally) -> AsyncGenerator[Item, None]:
    """A stream's events with the tokens in them, up to and with [DONE]."""
    async for text in events:
        if tally.wrong is not None:
            if isinstance(tally.wrong, NotContinuedError):
                yield engine_failed()
                return
            raise tally.wrong
        if not tally.replaying:
            yield Piece(text.encode(), tally.take(), tally.finished)


def _wrong_field(wrong: pydantic.ValidationError) -> Refusal:
    """The first field that pydantic finds wrong, without what was sent."""
    found = wrong.errors(include_url=False, include_input=False)[0]
    param = ".".join(str(part) for part in found["loc"]) or None
    message = found["msg"].removeprefix("Value error, ")
    return refused_by_engine(400, f"{param}: {message}" if param else message, param)

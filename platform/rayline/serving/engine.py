"""ray.serve.llm's server, without what a replica of ours does not want.

It imports vLLM, so only a replica imports it, in the process that the engine belongs to.

Ray has no public switch for its telemetry (an actor started on the head node, with vLLM imported in
it) nor a public way to end the engine's processes, so `start` is overridden here and `stop` reaches
for the engine's client. tests/serving/test_live.py holds both.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, cast

import pydantic
from ray.llm._internal.common.callbacks.base import CallbackBase
from ray.serve.llm import LLMConfig, LLMServer
from ray.serve.llm.openai_api_models import ChatCompletionRequest, CompletionRequest
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionResponse
from vllm.entrypoints.openai.completion.protocol import CompletionResponse
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.exceptions import VLLMClientError

from rayline.serving.requests import (
    Refusal,
    Reply,
    Route,
    Tree,
    WholeAnswer,
    refused_by_engine,
)


class NothingToDownload(CallbackBase):
    """Tells ray.serve.llm that every node of the replica already has the model."""

    async def on_before_node_init(self) -> None:
        """Called in the replica, before the engine's configuration is made."""
        self.ctx.run_init_node = False


class QuietServer(LLMServer):
    """One vLLM engine behind OpenAI's requests; it reports to nobody."""

    async def start(self) -> None:
        """Start the engine and no telemetry. Raises whatever vLLM raises."""
        self.engine = self._engine_cls(self._llm_config)
        await self.engine.start()

    async def answer(self, route: Route, tree: Tree) -> AsyncIterator[Reply]:
        """The pieces of one answer, as the engine makes them; see requests.Reply."""
        try:
            replies = await self._ask(route, tree)
        except pydantic.ValidationError as wrong:
            yield _wrong_field(wrong)
            return
        except (ValueError, VLLMClientError) as wrong:
            yield refused_by_engine(400, str(wrong), getattr(wrong, "parameter", None))
            return
        async for reply in replies:
            # A stream comes in lists, as long as what was made while the last was on its way.
            for piece in reply if isinstance(reply, list) else [reply]:
                yield _as_reply(piece)

    async def _ask(self, route: Route, tree: Tree) -> AsyncIterator[object]:
        if route == "chat":
            return await self.chat(ChatCompletionRequest.model_validate(tree))
        return await self.completions(CompletionRequest.model_validate(tree))

    async def touch(self) -> None:
        """Return once the engine's scheduler and each of its workers has answered, which they do
        between two steps, however many requests wait."""
        await self.collective_rpc("check_health")

    def stop(self) -> None:
        """End the engine and its processes. Returns once they are gone."""
        client = getattr(self.engine, "_engine_client", None)
        if client is not None:
            client.shutdown()


async def start_server(fields: dict[str, Any]) -> QuietServer:
    """An engine that is up. `fields` are LLMConfig's. Called by a replica."""
    server = cast("QuietServer", QuietServer.sync_init(LLMConfig(**fields)))
    await server.start()
    return server


def _as_reply(piece: object) -> Reply:
    # vLLM's own types: those that come and Ray's public ones are both derived from them.
    if isinstance(piece, str):
        return piece
    if isinstance(piece, ErrorResponse):
        error = piece.error
        return refused_by_engine(int(error.code), error.message, error.param)
    if isinstance(piece, ChatCompletionResponse | CompletionResponse):
        return WholeAnswer(piece.model_dump_json())
    raise TypeError(f"the engine answered with {type(piece).__name__}")


def _wrong_field(wrong: pydantic.ValidationError) -> Refusal:
    """The first field that pydantic finds wrong, without what was sent."""
    found = wrong.errors(include_url=False, include_input=False)[0]
    param = ".".join(str(part) for part in found["loc"]) or None
    message = found["msg"].removeprefix("Value error, ")
    return refused_by_engine(400, f"{param}: {message}" if param else message, param)

"""vLLM's OpenAI layer: which of its parts answers which route, and what it answers with.

Every part takes a request of its own type and the HTTP request (of which it reads headers), and
returns an error, a whole answer, or a stream; the three come in the types below.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pydantic
from starlette.requests import Request
from starlette.responses import Response
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.entrypoints.pooling.embed.protocol import EmbeddingRequest
from vllm.entrypoints.pooling.scoring.protocol import RerankRequest, ScoreRequest
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.tokenize.protocol import DetokenizeRequest, TokenizeRequest

from rayline.serving.requests import Refusal, Route, refused_by_engine
from rayline.serving.wire import Ask, WholeAnswer


@dataclass(frozen=True, slots=True)
class _Layer:
    part: str
    """Its name in the state that vLLM's own server keeps."""
    method: str
    request: Any
    """Type of its requests, or a union of them."""


_LAYERS: dict[Route, _Layer] = {
    "chat": _Layer("openai_serving_chat", "create_chat_completion", ChatCompletionRequest),
    "completions": _Layer("openai_serving_completion", "create_completion", CompletionRequest),
    "responses": _Layer("openai_serving_responses", "create_responses", ResponsesRequest),
    "embeddings": _Layer("serving_embedding", "__call__", EmbeddingRequest),
    "score": _Layer("serving_scores", "__call__", ScoreRequest),
    "rerank": _Layer("serving_scores", "__call__", RerankRequest),
    "tokenize": _Layer("serving_tokenization", "create_tokenize", TokenizeRequest),
    "detokenize": _Layer("serving_tokenization", "create_detokenize", DetokenizeRequest),
}
_REQUESTS = {route: pydantic.TypeAdapter(layer.request) for route, layer in _LAYERS.items()}

Made = Refusal | WholeAnswer | AsyncIterator[str]


async def put(ask: Ask, state: Any) -> Made:
    """Put a request to the part that answers it. Raises pydantic.ValidationError, ValueError and
    vLLM's own errors for a request that is wrong."""
    layer = _LAYERS[ask.route]
    part = getattr(state, layer.part, None)
    if part is None:
        return Refusal(
            400,
            f"The model {ask.tree.get('model')!r} does not support this route.",
            param="model",
            code="unsupported_route",
        )
    request = _REQUESTS[ask.route].validate_python(ask.tree)
    made = await getattr(part, layer.method)(request, _raw_request(ask))
    if isinstance(made, ErrorResponse):
        return refused_by_engine(int(made.error.code), made.error.message, made.error.param)
    if isinstance(made, pydantic.BaseModel):
        return WholeAnswer(made.model_dump_json(by_alias=ask.route == "responses").encode())
    if isinstance(made, Response):
        return WholeAnswer(bytes(made.body))
    return _as_events(made) if ask.route == "responses" else made


def least(state: Any, model: str) -> Ask:
    """The least that this engine can be asked to compute: one token, one vector or one score."""
    if getattr(state, "openai_serving_completion", None) is not None:
        prompt = {"prompt": "Hello", "max_tokens": 1, "temperature": 0.0}
        return Ask("probe", "completions", {"model": model, **prompt})
    if getattr(state, "serving_embedding", None) is not None:
        return Ask("probe", "embeddings", {"model": model, "input": "Hello"})
    return Ask("probe", "score", {"model": model, "text_1": "Hello", "text_2": "Hello"})


async def _as_events(made: AsyncIterator[pydantic.BaseModel]) -> AsyncIterator[str]:
    """The events of the Responses API, each with its name."""
    async for event in made:
        name = getattr(event, "type", "unknown")
        yield f"event: {name}\ndata: {event.model_dump_json(by_alias=True)}\n\n"


def _raw_request(ask: Ask) -> Request:
    """The headers that vLLM's OpenAI layer looks at."""
    headers = [(b"x-request-id", ask.request_id.encode())]
    if ask.traceparent is not None:
        headers.append((b"traceparent", ask.traceparent.encode()))
    return Request(
        {"type": "http", "method": "POST", "path": "/", "headers": headers, "query_string": b""}
    )

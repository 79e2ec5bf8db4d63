"""The gateway: what HTTP reaches. It checks a request, asks a replica, and passes the answer on
unbuffered.

Only the routes below exist; whatever else is asked for is a 404 in OpenAI's shape. Keys, quotas and
the choice between variants belong here, so the gateway is a process of its own and imports no vLLM.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import cast

from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    ReplicaUnavailableError,
)
from ray.serve.handle import DeploymentHandle, DeploymentResponseGenerator
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route as Path

from rayline.serving.requests import (
    Refusal,
    RefusedError,
    Reply,
    Route,
    Tree,
    WholeAnswer,
    engine_failed,
    event,
    parse_request,
    unavailable,
    unknown_model,
)
from rayline.spec import RequestLimits

logger = logging.getLogger(__name__)

Ask = Callable[[Route, Tree], AsyncGenerator[Reply, None]]
"""Puts a checked request to a replica and yields the pieces of its answer."""


@serve.ingress()
class Gateway:
    """The Serve deployment around `openai_app`. `replicas` is the deployment of engines."""

    def __init__(self, card: Tree, replicas: DeploymentHandle) -> None:
        self._card = card
        self._replicas = replicas.options(method_name="answer", stream=True)

    async def __serve_build_asgi_app__(self) -> Starlette:
        """Called by Serve, once, when the gateway starts."""
        return openai_app(self._card, self._ask, self._ready, RequestLimits())

    async def _ask(self, route: Route, tree: Tree) -> AsyncGenerator[Reply, None]:
        replies = cast("DeploymentResponseGenerator[Reply]", self._replicas.remote(route, tree))
        async for reply in replies:
            yield reply

    def _ready(self) -> bool:
        """Whether a replica has ever come up; it comes up with its first token."""
        return self._replicas.running_replicas_populated()


def model_card(model: str, max_model_len: int, revision: str) -> Tree:
    """The model as /v1/models shows it. `revision` is the fingerprint of what is deployed."""
    return {
        "id": model,
        "object": "model",
        "created": int(time.time()),
        "owned_by": "rayline",
        "max_model_len": max_model_len,
        "revision": revision,
    }


def openai_app(card: Tree, ask: Ask, ready: Callable[[], bool], limits: RequestLimits) -> Starlette:
    """The HTTP surface over anything that answers requests."""
    model = str(card["id"])

    async def chat(request: Request) -> Response:
        return await _answer(request, "chat", model, ask, limits)

    async def completions(request: Request) -> Response:
        return await _answer(request, "completions", model, ask, limits)

    async def models(_: Request) -> Response:
        return JSONResponse({"object": "list", "data": [card]})

    async def one_model(request: Request) -> Response:
        asked = request.path_params["model"]
        return JSONResponse(card) if asked == model else _refused(unknown_model(asked))

    async def health(_: Request) -> Response:
        if not ready():
            return _refused(unavailable("No replica has come up yet."))
        return JSONResponse({"status": "ok", "model": model})

    return Starlette(
        routes=[
            Path("/v1/chat/completions", chat, methods=["POST"]),
            Path("/v1/completions", completions, methods=["POST"]),
            Path("/v1/models", models, methods=["GET"]),
            Path("/v1/models/{model:path}", one_model, methods=["GET"]),
            Path("/health", health, methods=["GET"]),
        ],
        exception_handlers={
            HTTPException: _no_such_route,
            RefusedError: _refused_request,
            Exception: _failed_request,
        },
    )


async def _answer(
    request: Request, route: Route, model: str, ask: Ask, limits: RequestLimits
) -> Response:
    asked = parse_request(route, await _body(request, limits.max_body_bytes), limits)
    if asked.model != model:
        return _refused(unknown_model(asked.model))
    replies = ask(route, asked.tree)
    try:
        # The first piece is waited for, so that a request that fails has a status to fail with.
        first = await anext(replies)
    # Whatever it is, the client gets an answer in OpenAI's shape.
    except Exception as wrong:  # noqa: BLE001
        return _refused(refusal_for(wrong))
    if isinstance(first, Refusal):
        return _refused(first)
    if isinstance(first, WholeAnswer):
        return Response(first.json_text, media_type="application/json")
    return StreamingResponse(
        _events(first, replies),
        media_type="text/event-stream",
        # A proxy in front must neither keep events nor collect them.
        headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
    )


async def _body(request: Request, most_bytes: int) -> bytes:
    """The body, read no further than it may go."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most_bytes:
            break
    return bytes(body)


async def _events(first: str, replies: AsyncIterator[Reply]) -> AsyncIterator[str]:
    """A stream's events. One that breaks off ends with an error event and without [DONE], so that
    no client takes half an answer for a whole one."""
    yield first
    try:
        async for reply in replies:
            if isinstance(reply, str):
                yield reply
            elif isinstance(reply, Refusal):
                yield event(reply.body())
    # Once the stream runs there is no other way left to tell the client.
    except Exception as wrong:  # noqa: BLE001
        yield event(refusal_for(wrong).body())


def refusal_for(wrong: BaseException) -> Refusal:
    """What a client is told of a failure inside; the log gets the rest."""
    if isinstance(wrong, BackPressureError):
        wait_s = math.ceil(wrong.retry_after_s or 1.0)
        return Refusal(
            503,
            "Every replica is busy and the queue is full.",
            type="server_error",
            code="overloaded",
            retry_after_s=wait_s,
        )
    logger.error("a request failed", exc_info=wrong)
    if isinstance(wrong, RayActorError | ReplicaUnavailableError):
        return unavailable("The replica that worked on this request was lost. Try again.")
    if isinstance(wrong, DeploymentUnavailableError):
        return unavailable("No replica of the model could be started.")
    return engine_failed()


def _refused(refusal: Refusal) -> JSONResponse:
    headers = {} if refusal.retry_after_s is None else {"Retry-After": str(refusal.retry_after_s)}
    return JSONResponse(refusal.body(), status_code=refusal.status, headers=headers)


async def _refused_request(_: Request, wrong: Exception) -> Response:
    return _refused(wrong.refusal if isinstance(wrong, RefusedError) else refusal_for(wrong))


async def _no_such_route(request: Request, wrong: Exception) -> Response:
    status = wrong.status_code if isinstance(wrong, HTTPException) else 500
    what = f"{request.method} {request.url.path[:200]}"
    refusal = {
        404: Refusal(404, f"Unknown request URL: {what}.", code="unknown_url"),
        405: Refusal(405, f"Not allowed: {what}.", code="method_not_allowed"),
    }.get(status, Refusal(status, str(getattr(wrong, "detail", "The request failed."))))
    response = _refused(refusal)
    response.headers.update(getattr(wrong, "headers", None) or {})
    return response


async def _failed_request(_: Request, wrong: Exception) -> Response:
    return _refused(refusal_for(wrong))

"""The routes, and how an answer gets onto the client's connection.

Only the routes below exist; whatever else is asked for is a 404 in OpenAI's shape. A stream's
pieces go out as the replica made them, all that has come at a time.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import cast

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route as Path
from starlette.types import Receive, Scope, Send

from rayline.serving.director.fleet import Served
from rayline.serving.gateway.fleet import Connections
from rayline.serving.gateway.journey import Journey
from rayline.serving.gateway.measuring import Meter
from rayline.serving.gateway.shadow import Shadow
from rayline.serving.requests import (
    ROUTES,
    Refusal,
    RefusedError,
    Route,
    Tree,
    check_request,
    engine_failed,
    event,
    read_json,
    unavailable,
    unknown_model,
)
from rayline.serving.wire import Ask, Item, Piece, WholeAnswer

logger = logging.getLogger(__name__)

_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    # A proxy in front must neither keep events nor collect them.
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


def openai_app(fleet: Connections) -> Starlette:
    """The HTTP surface over the replicas that `fleet` is connected to."""

    shadow = Shadow(fleet)

    def answers(route: Route) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            return await _begin(request, route, fleet, shadow)

        return answer

    async def models(_: Request) -> Response:
        return JSONResponse({"object": "list", "data": _cards(fleet)})

    async def one_model(request: Request) -> Response:
        asked = request.path_params["model"]
        found = [card for card in _cards(fleet) if card["id"] == asked]
        return JSONResponse(found[0]) if found else _refused(unknown_model(asked))

    async def health(_: Request) -> Response:
        if not fleet.ready:
            return _refused(unavailable("No replica has come up yet."))
        return JSONResponse({"status": "ok", "models": sorted(fleet.fleet.models)})

    by_itself = {
        "/v1/models": models,
        "/v1/models/{model}": one_model,
        "/health": health,
    }
    return Starlette(
        routes=[
            Path(
                entry.path.replace("{model}", "{model:path}"),
                answers(entry.route) if entry.route else by_itself[entry.path],
                methods=[entry.method],
            )
            for entry in ROUTES
            if entry.route or entry.path in by_itself
        ],
        exception_handlers={
            HTTPException: _no_such_route,
            RefusedError: _refused_request,
            Exception: _failed_request,
        },
    )


def model_card(served: Served) -> Tree:
    """A model as /v1/models shows it."""
    return {
        "id": served.model,
        "object": "model",
        "created": served.created_s,
        "owned_by": "rayline",
        "max_model_len": served.max_model_len,
        "revision": served.revision,
        "version": served.version,
    }


def _cards(fleet: Connections) -> list[Tree]:
    """Each model, as its stable version has it."""
    found = []
    for _, offer in sorted(fleet.fleet.models.items()):
        shown = offer.variant(offer.weights.stable) or offer.variants[0]
        found.append(model_card(shown.served))
    return found


async def _begin(request: Request, route: Route, fleet: Connections, shadow: Shadow) -> Response:
    """Check a request and wait for the first of its answer, so that one that fails has a status to
    fail with."""
    limits = fleet.limits
    tree = read_json(await _body(request, limits.max_body_bytes), limits)
    asked = check_request(route, tree, fleet.limits_of(tree.get("model")))
    ask = Ask(
        request_id=uuid.uuid4().hex,
        route=route,
        tree=asked.tree,
        traceparent=request.headers.get("traceparent"),
    )
    shadow.copy(ask, asked.model)
    journey = Journey(ask, fleet.wanted(asked.model, asked.session), fleet)
    return cast("Response", _Answer(journey, fleet.meter))


@dataclass(slots=True)
class _Answer:
    """An ASGI response that sends a Journey's items as they come. A client that goes ends it."""

    journey: Journey
    meter: Meter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Called by Starlette."""
        gone = asyncio.create_task(_leave_with_client(receive, self.journey))
        self.meter.begin(self.journey)
        try:
            await self._send_all(_Connection(scope, receive, send))
        finally:
            self.meter.end(self.journey)
            gone.cancel()

    async def _send_all(self, client: _Connection) -> None:
        try:
            async for items in self.journey.items():
                await self._send_items(items, client)
        except RefusedError as wrong:
            await client.refuse(wrong.refusal)
        # Whatever it is, the client gets an answer in OpenAI's shape.
        except Exception:
            self.journey.failed = True
            logger.exception("a request failed")
            await client.refuse(engine_failed())
        await client.end()

    @staticmethod
    async def _send_items(items: list[Item], client: _Connection) -> None:
        if text := b"".join(item.text for item in items if isinstance(item, Piece)):
            await client.stream(text)
        for item in items:
            if isinstance(item, WholeAnswer):
                await client.respond(Response(item.json_text, media_type="application/json"))
            elif isinstance(item, Refusal):
                await client.refuse(item)


class _Connection:
    """The client's end of one answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self._streaming = self._responded = False

    async def stream(self, text: bytes) -> None:
        """Send more of a stream."""
        if not self._streaming:
            self._streaming = True
            start = {"type": "http.response.start", "status": 200, "headers": _STREAM_HEADERS}
            await self._send(start)
        await self._send({"type": "http.response.body", "body": text, "more_body": True})

    async def refuse(self, refusal: Refusal) -> None:
        """An error: as the response, or as the last event of a stream, which then has no [DONE], so
        that no client takes half an answer for a whole one."""
        if self._streaming:
            await self.stream(event(refusal.body()).encode())
        else:
            await self.respond(_refused(refusal))

    async def respond(self, response: Response) -> None:
        """Send a response that is no stream, once."""
        if not self._responded:
            self._responded = True
            await response(self._scope, self._receive, self._send)

    async def end(self) -> None:
        """There is no more to send. A response that never was is an error, too."""
        if self._streaming:
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})
        else:
            await self.respond(_refused(engine_failed()))


async def _leave_with_client(receive: Receive, journey: Journey) -> None:
    """End the computation when the client has gone. The body has been read: what comes now is
    that."""
    while (await receive())["type"] != "http.disconnect":
        pass
    journey.leave()


async def _body(request: Request, max_bytes: int) -> bytes:
    """The body, read no further than it may go."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_bytes:
            break
    return bytes(body)


def _refused(refusal: Refusal) -> JSONResponse:
    headers = {} if refusal.retry_after_s is None else {"Retry-After": str(refusal.retry_after_s)}
    return JSONResponse(refusal.body(), status_code=refusal.status, headers=headers)


async def _refused_request(_: Request, wrong: Exception) -> Response:
    return _refused(wrong.refusal if isinstance(wrong, RefusedError) else engine_failed())


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
    logger.error("a request failed", exc_info=wrong)
    return _refused(engine_failed())

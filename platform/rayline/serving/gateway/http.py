"""The routes, and how an answer gets onto the client's connection.

Only the routes below exist; whatever else is asked for is a 404 in OpenAI's shape. A stream's
pieces go out as the replica made them, all that has come at a time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route as Path
from starlette.types import Receive, Scope, Send

from rayline.serving.director.fleet import Offer
from rayline.serving.gateway.fleet import Connections
from rayline.serving.gateway.front import Front, Visit
from rayline.serving.gateway.journey import Journey
from rayline.serving.requests import (
    ROUTES,
    Entry,
    Refusal,
    RefusedError,
    Tree,
    check_content_type,
    engine_failed,
    event,
    unavailable,
    unknown_model,
)
from rayline.serving.requests.openapi import openapi_document
from rayline.serving.wire import Item, Piece, WholeAnswer

Endpoint = Callable[[Request], Awaitable[Response]]

logger = logging.getLogger(__name__)

_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    # A proxy in front must neither keep events nor collect them.
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


def openai_app(front: Front) -> Starlette:
    """The HTTP surface over `front`."""
    fleet = front.fleet

    async def models(_: Request) -> Response:
        return JSONResponse({"object": "list", "data": _cards(fleet)})

    async def one_model(request: Request) -> Response:
        asked = request.path_params["model"]
        found = [card for card in _cards(fleet) if card["id"] == asked]
        return JSONResponse(found[0]) if found else _refused(unknown_model(asked))

    async def health(_: Request) -> Response:
        if front.leaving:
            return _refused(unavailable("This gateway is about to stop."))
        if not fleet.ready:
            return _refused(unavailable("No replica has come up yet."))
        return JSONResponse({"status": "ok"})

    async def healthz(_: Request) -> Response:
        return PlainTextResponse("success")

    async def metrics(_: Request) -> Response:
        return Response(front.meters.text(), media_type=CONTENT_TYPE_LATEST)

    async def openapi(_: Request) -> Response:
        return JSONResponse(openapi_document(fleet.limits))

    by_itself = {
        "/v1/models": models,
        "/v1/models/{model}": one_model,
        "/health": health,
        "/-/healthz": healthz,
        "/metrics": metrics,
        "/openapi.json": openapi,
    }
    return Starlette(
        routes=[
            Path(
                entry.path.replace("{model}", "{model:path}"),
                _answers(front, entry, by_itself.get(entry.path)),
                methods=[entry.method],
            )
            for entry in ROUTES
        ],
        middleware=_middleware(front.spec.cors_origins),
        exception_handlers={
            HTTPException: _no_such_route,
            RefusedError: _refused_request,
            Exception: _failed_request,
        },
    )


def _middleware(origins: Sequence[str]) -> list[Middleware]:
    """Browsers may ask from these pages; from none unless the spec names them."""
    if not origins:
        return []
    return [
        Middleware(
            CORSMiddleware,
            allow_origins=list(origins),
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type"],
        )
    ]


def _answers(front: Front, entry: Entry, by_itself: Endpoint | None) -> Endpoint:
    """What answers at one path, behind the door."""

    async def answer(request: Request) -> Response:
        await front.look(request, entry)
        if by_itself is not None or entry.route is None:
            return await (by_itself or _failed)(request)
        check_content_type(request.headers.get("content-type"))
        body = await _body(request, front.fleet.limits.max_body_bytes)
        visit = await front.enter(request, entry, entry.route, body)
        return cast("Response", _Answer(front, visit))

    return answer


def model_card(name: str, offer: Offer) -> Tree:
    """A model, or an adapter of one, as /v1/models shows it: as its stable version has it."""
    served = offer.shown
    parent = {} if offer.adapter is None else {"parent": served.model}
    return {
        "id": name,
        "object": "model",
        "created": served.created_s,
        "owned_by": "rayline",
        "max_model_len": served.max_model_len,
        "revision": served.revision,
        "version": served.version,
        **parent,
    }


def _cards(fleet: Connections) -> list[Tree]:
    return [model_card(name, offer) for name, offer in sorted(fleet.fleet.models.items())]


@dataclass(slots=True)
class _Answer:
    """An ASGI response that sends a Journey's items as they come. A client that goes ends it."""

    front: Front
    visit: Visit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Called by Starlette."""
        client = _Connection(scope, receive, send, self._headers())
        gone = asyncio.create_task(_leave_with_client(receive, self.visit.journey))
        try:
            await self._send_all(client)
        finally:
            gone.cancel()
            self.front.leave(self.visit, client.status)

    def _headers(self) -> dict[str, str]:
        return {"x-request-id": self.visit.request_id, **self.visit.pass_.headers}

    async def _send_all(self, client: _Connection) -> None:
        try:
            async for items in self.visit.journey.items():
                await self._send_items(items, client)
        except RefusedError as wrong:
            await client.refuse(wrong.refusal)
        # Whatever it is, the client gets an answer in OpenAI's shape.
        except Exception:
            self.visit.journey.failed = True
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
    """The client's end of one answer. `headers` go with it, whatever it is."""

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, headers: Mapping[str, str]
    ) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self._headers = headers
        self._streaming = self._responded = False
        self.status = 500
        """Of HTTP, as it was sent."""

    async def stream(self, text: bytes) -> None:
        """Send more of a stream."""
        if not self._streaming:
            self._streaming, self.status = True, 200
            own = [(name.encode(), value.encode()) for name, value in self._headers.items()]
            headers = [*_STREAM_HEADERS, *own]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
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
            self._responded, self.status = True, response.status_code
            response.headers.update(self._headers)
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
    response = _refused(wrong.refusal if isinstance(wrong, RefusedError) else engine_failed())
    response.headers.update(getattr(wrong, "headers", {}))
    return response


async def _failed(_: Request) -> Response:
    return _refused(engine_failed())


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

"""What surrounds every request: under which name the console is reached, what browsers are told.

A page elsewhere can make a browser resolve its own name to this machine (DNS rebinding); then the
Host header bears that name. So names are listed: localhost, what was given at the start, and plain
addresses, which nobody can rebind. What a browser may do with the page is said in headers that go
with every answer.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
"""No script and no style but the console's own files."""
REPORT_POLICY = (
    "sandbox allow-scripts; default-src 'none'; script-src 'unsafe-inline'; "
    "style-src 'unsafe-inline'; img-src data: blob:; font-src data:"
)
"""Of a report that a run made: it may draw, as a page of nobody's."""
_HEADERS = {
    "content-security-policy": POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


class Guard:
    """ASGI middleware."""

    def __init__(self, app: ASGIApp, names: Iterable[str]) -> None:
        self._app = app
        self._names = {name.lower() for name in names} | {"localhost"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Called by Starlette."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("cache-control", "no-store")
            await send(message)

        if is_known(Headers(scope=scope).get("host", ""), self._names):
            await self._app(scope, receive, with_headers)
            return
        refusal = PlainTextResponse(
            "The console is not known under this name; rayline console --name NAME adds one.", 421
        )
        await refusal(scope, receive, with_headers)


def is_known(host: str, names: Iterable[str]) -> bool:
    """Whether a Host header bears one of the names, or a plain address."""
    name = host.lower()
    name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
    if name in names:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def from_own_page(origin: str | None, host: str) -> bool:
    """Whether a request that changes something was made by the console's own page; browsers send
    the origin with each. One without is no browser's."""
    return origin is None or origin.partition("://")[2].lower() == host.lower()

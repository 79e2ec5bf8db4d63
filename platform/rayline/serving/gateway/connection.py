"""A client's connection: uvicorn's, with bounds on how long a request may take to arrive and how
large its head may be. uvicorn has neither: a few hundred connections that send a byte now and then
would hold a gateway's memory for ever (slowloris), and so would one endless header.
"""

from __future__ import annotations

import asyncio
import json

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from rayline.serving.requests import Refusal

MAX_HEAD_BYTES = 64 * 2**10
"""Of the address and the headers together; nginx takes 32 KiB, gunicorn 800 KiB."""


class BoundedConnection(HttpToolsProtocol):
    """Made by uvicorn, one a connection."""

    arrival_timeout_s = 60.0
    """How long a request may take to arrive, from its first byte, or from the connection, to its
    last: 4 MiB at 70 KB/s."""
    _deadline: asyncio.TimerHandle | None = None
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Called by the event loop."""
        super().connection_made(transport)
        self._wait_for_request()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the event loop."""
        self._has_arrived()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """Called by the parser at a request's first byte."""
        self._head_bytes = 0
        self._wait_for_request()
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        """Called by the parser, for each part of the address."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Called by the parser, for each header."""
        self._count(len(name) + len(value))
        super().on_header(name, value)

    def on_message_complete(self) -> None:
        """Called by the parser at a request's last byte."""
        self._has_arrived()
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Called for what is no HTTP, or more of it than may be."""
        self._hang_up(400, "Bad Request", msg)

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES:
            # The parser makes a parsing error of whatever its callbacks raise.
            raise ValueError("the head of the request is too large")

    def _wait_for_request(self) -> None:
        self._has_arrived()
        self._deadline = self.loop.call_later(self.arrival_timeout_s, self._give_up)

    def _has_arrived(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        self._hang_up(408, "Request Timeout", "The request took too long to arrive.")

    def _hang_up(self, status: int, reason: str, message: str) -> None:
        body = json.dumps(Refusal(status, message).body()).encode()
        head = (
            f"HTTP/1.1 {status} {reason}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()

"""Raw sockets: what is no proper request is answered in OpenAI's shape or closed, and others are
served meanwhile."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator

import httpx
import pytest

from rayline.serving.gateway.connection import MAX_HEAD_BYTES, BoundedConnection
from support.house import House

BODY = json.dumps({"model": "bot", "prompt": "a b", "max_tokens": 2}).encode()
POST = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(BODY)


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    house = House()
    house.start("one")
    yield house
    house.close()


def dial(house: House) -> socket.socket:
    host, port = house.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=10)
    connection.settimeout(10)
    return connection


def said(house: House, request: bytes) -> bytes:
    """All that comes back until the gateway hangs up, or waits for more."""
    parts = []
    with dial(house) as connection, contextlib.suppress(TimeoutError):
        connection.sendall(request)
        connection.settimeout(1)
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


def test_a_proper_request_is_answered(house):
    answer = said(house, POST + LENGTH + b"Connection: close\r\n\r\n" + BODY)
    assert answer.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    "request_bytes",
    [
        POST + LENGTH + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + BODY,
        POST + b"Transfer-Encoding: chunked\r\n" + LENGTH + b"\r\n0\r\n\r\n",
        POST + LENGTH + b"Content-Length: 3\r\n\r\n" + BODY,
        POST + b"Content-Length: -1\r\n\r\n",
        POST + b"Content-Length: 1e3\r\n\r\n",
        POST + b"Content-Length: +5\r\n\r\nhello",
        POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n",
        POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        POST + b"Bad Header: x\r\n\r\n",
        POST + b"X: a\x00b\r\n\r\n",
        b"GET\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        POST + b"X: " + b"a" * (MAX_HEAD_BYTES + 1) + b"\r\n\r\n",
        POST + b"".join(b"X-%d: y\r\n" % n for n in range(20_000)) + b"\r\n",
        b"GET /" + b"a" * (MAX_HEAD_BYTES + 1) + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
def test_what_two_servers_could_read_in_two_ways_is_refused(house, request_bytes):
    try:
        answer = said(house, request_bytes)
    except ConnectionResetError:
        return
    statuses = [line.split()[1] for line in answer.split(b"\r\n") if line.startswith(b"HTTP/")]
    assert all(status.startswith(b"4") for status in statuses), answer[:300]
    if b"\r\n\r\n" in answer:
        assert set(json.loads(answer.rsplit(b"\r\n\r\n", 1)[1])["error"]) >= {"message", "code"}


def test_two_hundred_connections_that_never_finish_are_closed_and_hold_up_nobody(
    house, monkeypatch
):
    monkeypatch.setattr(BoundedConnection, "arrival_timeout_s", 1.5)
    slow = [dial(house) for _ in range(200)]
    try:
        for number, connection in enumerate(slow):
            connection.sendall((POST + LENGTH + b"\r\n" + BODY)[: number % 90])
        url = f"{house.url}/v1/completions"
        with httpx.Client(timeout=5) as http:
            for _ in range(20):
                assert http.post(url, content=BODY).status_code == 200
        deadline_s = time.monotonic() + 10
        for connection in slow:
            connection.settimeout(max(0.1, deadline_s - time.monotonic()))
            answer = connection.recv(65536)
            assert answer == b"" or answer.startswith(b"HTTP/1.1 408")
    finally:
        for connection in slow:
            connection.close()

"""Frames: a header of nine bytes, then the payload.

    length of the payload (u32) | kind (u8) | number of the request (u32), big-endian

The gateway numbers its requests; number 0 speaks of the connection itself. A piece's payload is the
count of its tokens (u16, the highest bit says that they are the last), their ids (u32 each) and the
text. Everything else that has a structure
is JSON: it comes once a request, a piece comes with every token.
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Iterator
from dataclasses import asdict
from enum import IntEnum
from typing import Any

from rayline.errors import ServingError
from rayline.serving.requests import Refusal
from rayline.serving.wire.exchange import Ask, Item, Load, Piece, Usage, WholeAnswer

HEADER = struct.Struct("!IBI")
MAX_PAYLOAD_BYTES = 64 * 2**20
"""Above any answer; what claims to be longer is not one of ours."""
_COUNT = struct.Struct("!H")
_ENDED = 1 << 15


class Kind(IntEnum):
    """What a frame is."""

    HELLO = 1
    """The gateway's first: the secret of the fleet."""
    ASK = 2
    CANCEL = 3
    """The client has gone."""
    PIECE = 4
    WHOLE = 5
    REFUSAL = 6
    USAGE = 7
    """The last of a request."""
    LOST = 8
    """The engine failed in the middle: the last of a request, too."""
    LOAD = 9
    LEAVING = 10
    """The replica takes no more requests and finishes those that it has."""


class Reader:
    """Puts frames together from what a socket delivers."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[int, int, memoryview]]:
        """Kind, request and payload of every frame that is complete. A payload is valid until the
        next call. Raises ServingError for what is no frame of ours."""
        buffer = self._buffer
        buffer += data
        place, end = 0, len(buffer)
        view = memoryview(bytes(buffer)) if end >= HEADER.size else memoryview(b"")
        while end - place >= HEADER.size:
            length, kind, request = HEADER.unpack_from(view, place)
            if length > MAX_PAYLOAD_BYTES:
                raise ServingError("wire", "a frame is longer than any of ours", value=length)
            begin = place + HEADER.size
            if end - begin < length:
                break
            place = begin + length
            yield kind, request, view[begin:place]
        del buffer[:place]


class Writer:
    """Collects frames and writes them once an event loop's turn."""

    def __init__(self, transport: asyncio.WriteTransport) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._pending = bytearray()

    def write(self, kind: Kind, request: int, payload: bytes = b"") -> None:
        """Queue one frame."""
        if not self._pending:
            self._loop.call_soon(self.flush)
        self._pending += HEADER.pack(len(payload), kind, request)
        self._pending += payload

    def flush(self) -> None:
        """Write what is queued."""
        if self._pending and not self._transport.is_closing():
            self._transport.write(bytes(self._pending))
        self._pending.clear()


def pack_ask(ask: Ask) -> bytes:
    """As `unpack_ask` reads it."""
    return json.dumps(
        {
            "request_id": ask.request_id,
            "route": ask.route,
            "tree": ask.tree,
            "emitted": ask.emitted,
            "repeat": ask.repeat,
            "ended": ask.ended,
            "traceparent": ask.traceparent,
        },
        separators=(",", ":"),
    ).encode()


def unpack_ask(payload: memoryview) -> Ask:
    """The request in a frame of kind ASK."""
    fields = _tree(payload)
    return Ask(**{**fields, "emitted": tuple(fields["emitted"])})


def pack_item(item: Item) -> tuple[Kind, bytes]:
    """An item of an answer as the kind and payload of its frame."""
    if isinstance(item, Piece):
        count = len(item.tokens)
        head = count | _ENDED if item.ended else count
        return Kind.PIECE, struct.pack(f"!H{count}I", head, *item.tokens) + item.text
    if isinstance(item, WholeAnswer):
        return Kind.WHOLE, item.json_text
    kind = Kind.USAGE if isinstance(item, Usage) else Kind.REFUSAL
    return kind, pack_value(item)


def unpack_item(kind: int, payload: memoryview) -> Item | None:
    """The item in a frame, None where its kind holds none."""
    if kind == Kind.PIECE:
        (head,) = _COUNT.unpack_from(payload)
        count = head & ~_ENDED
        end = _COUNT.size + 4 * count
        tokens = struct.unpack_from(f"!{count}I", payload, _COUNT.size)
        return Piece(bytes(payload[end:]), tokens, head != count)
    if kind == Kind.WHOLE:
        return WholeAnswer(bytes(payload))
    if kind == Kind.USAGE:
        return Usage(**_tree(payload))
    if kind == Kind.REFUSAL:
        return Refusal(**_tree(payload))
    return None


def pack_value(value: Refusal | Usage | Load) -> bytes:
    """A flat value as JSON."""
    return json.dumps(asdict(value), separators=(",", ":")).encode()


def unpack_load(payload: memoryview) -> Load:
    """The load in a frame of kind LOAD."""
    return Load(**_tree(payload))


def _tree(payload: memoryview) -> dict[str, Any]:
    tree: dict[str, Any] = json.loads(bytes(payload))
    return tree

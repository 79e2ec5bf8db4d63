"""What a gateway and a replica say to each other, as values; and what an engine has to be."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rayline.serving.requests import Refusal, Route, Tree


@dataclass(frozen=True, slots=True)
class Ask:
    """One request to an engine."""

    request_id: str
    """Ours: it stands in the answer, in both access logs and in the ledger."""
    route: Route
    tree: Tree
    """The body, checked."""
    emitted: tuple[int, ...] = ()
    """Ids of the tokens whose text the client has from a replica that was lost since: the answer
    goes on behind them."""
    repeat: bool = False
    """Whether to come to that point by generating them again (replica/continuing.py)."""
    ended: bool = False
    """Whether they were all, and only the end of the stream is missing."""
    traceparent: str | None = None
    """W3C trace context of the client, passed on to the engine."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a stream, ready to be sent."""

    text: bytes
    """One or more server-sent events."""
    tokens: tuple[int, ...] = ()
    """Ids of the tokens whose text has been sent with the end of this piece, and was not before."""
    ended: bool = False
    """Whether the answer has no token after these."""


@dataclass(frozen=True, slots=True)
class WholeAnswer:
    """An answer that does not stream."""

    json_text: bytes


@dataclass(frozen=True, slots=True)
class Usage:
    """What a request took of the engine; the last word of every answer, also of one that was
    cut off."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Of them, those that the prefix cache had."""
    completion_tokens: int = 0
    """Tokens that the engine generated, whether or not they arrived."""
    waited_ms: float = 0.0
    """In the engine's queue."""
    computed_ms: float = 0.0
    """From the end of that wait to the last token."""


Item = Piece | WholeAnswer | Refusal | Usage


@dataclass(frozen=True, slots=True)
class Load:
    """How busy an engine is."""

    waiting: int = 0
    """Requests that have no sequence of the engine yet."""
    running: int = 0
    """Requests that it computes."""
    kv_use: float = 0.0
    """Share of the KV cache in use, 0 to 1."""
    generated_tokens: int = 0
    """Since it started."""


class Engine(Protocol):
    """What stands in a replica: vLLM, or a rehearsal of it. Used within one event loop."""

    def answer(self, ask: Ask) -> AsyncGenerator[Item, None]:
        """The items of one answer: pieces or one whole answer, or a refusal, and Usage last.

        Closing or cancelling it ends the computation; the usage of what was computed until then is
        left in `usage_of`."""
        ...

    def usage_of(self, request_id: str) -> Usage:
        """What an answer that was cancelled has taken. Forgets it."""
        ...

    def load(self) -> Load:
        """How busy it is now."""
        ...

    @property
    def dead(self) -> bool:
        """Whether it has ended and will answer nobody."""
        ...

    async def probe(self) -> None:
        """Return once a real token has been generated, however many requests wait. Raises
        ServingError where it is gone."""
        ...

    async def add_adapter(self, name: str, folder: Path) -> None:
        """Answer with the adapter in `folder`, which was checked (serving/adapters.py), whoever
        asks for `name` from now on. Raises SpecError where it cannot be loaded."""
        ...

    async def remove_adapter(self, name: str) -> None:
        """Answer no new request for `name`; those under way end as they began."""
        ...

    def stop(self) -> None:
        """End it and its processes. Returns once they are gone. Called from any thread."""
        ...

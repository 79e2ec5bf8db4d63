"""Every route there is: what is not in this table cannot be reached."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rayline.spec.access import Scope

Route = Literal[
    "chat",
    "completions",
    "embeddings",
    "responses",
    "score",
    "rerank",
    "tokenize",
    "detokenize",
]
"""A route that is answered by an engine."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One path with its one method."""

    path: str
    method: Literal["GET", "POST"]
    scope: Scope | None
    """What a key must be good for; None: no key is asked for."""
    summary: str
    """One line for the OpenAPI document."""
    route: Route | None = None
    """Which engine's route it is; None: the gateway answers by itself."""


ROUTES: tuple[Entry, ...] = (
    Entry("/v1/chat/completions", "POST", "inference", "The next turn of a chat.", "chat"),
    Entry("/v1/completions", "POST", "inference", "What follows a text.", "completions"),
    Entry("/v1/embeddings", "POST", "inference", "Vectors of texts.", "embeddings"),
    Entry("/v1/responses", "POST", "inference", "An answer, by the Responses API.", "responses"),
    Entry("/v1/score", "POST", "inference", "How well pairs of texts fit.", "score"),
    Entry("/v1/rerank", "POST", "inference", "Documents by how well they fit.", "rerank"),
    Entry("/tokenize", "POST", "tokenize", "The tokens of a text.", "tokenize"),
    Entry("/detokenize", "POST", "tokenize", "The text of tokens.", "detokenize"),
    Entry("/v1/models", "GET", "models", "The models that are served."),
    Entry("/v1/models/{model}", "GET", "models", "One of them."),
    Entry("/health", "GET", None, "Whether anything can answer."),
    Entry("/-/healthz", "GET", None, "Whether the gateway itself does; KubeRay asks."),
    Entry("/metrics", "GET", "metrics", "Prometheus metrics."),
    Entry("/openapi.json", "GET", "admin", "This document."),
)

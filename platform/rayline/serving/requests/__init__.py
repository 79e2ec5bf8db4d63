"""What may be asked, and what a refusal looks like: pure functions of the body."""

from __future__ import annotations

from rayline.serving.requests.body import MAX_BODY_BYTES
from rayline.serving.requests.fields import MAX_CHOICES, Route, parse_request
from rayline.serving.requests.refusal import (
    Refusal,
    RefusedError,
    Tree,
    engine_failed,
    event,
    refused_by_engine,
    unavailable,
    unknown_model,
)
from rayline.serving.requests.reply import Reply, WholeAnswer

__all__ = [
    "MAX_BODY_BYTES",
    "MAX_CHOICES",
    "Refusal",
    "RefusedError",
    "Reply",
    "Route",
    "Tree",
    "WholeAnswer",
    "engine_failed",
    "event",
    "parse_request",
    "refused_by_engine",
    "unavailable",
    "unknown_model",
]

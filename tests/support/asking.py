"""Requests to build tests from: one of every route that passes, and how a refusal is read."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rayline.serving.requests import Refusal, RefusedError, parse_request
from rayline.spec import RequestLimits

LIMITS = RequestLimits()
HELLO = [{"role": "user", "content": "hello"}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "description": "of a city", "parameters": SCHEMA},
}
CALLED = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}

PLAIN: dict[str, dict[str, Any]] = {
    "chat": {"model": "bot", "messages": HELLO},
    "completions": {"model": "bot", "prompt": "Once"},
    "embeddings": {"model": "bot", "input": "Once"},
    "responses": {"model": "bot", "input": "Once"},
    "score": {"model": "bot", "queries": "Once", "documents": ["upon", "a time"]},
    "rerank": {"model": "bot", "query": "Once", "documents": ["upon", "a time"]},
    "tokenize": {"model": "bot", "prompt": "Once"},
    "detokenize": {"model": "bot", "tokens": [1, 2, 3]},
}
"""The least of each route."""


def encoded(body: object) -> bytes:
    return body if isinstance(body, bytes) else json.dumps(body).encode()


def refusal(body: object, route: str = "chat", limits: RequestLimits = LIMITS) -> Refusal:
    """The refusal of a body, which has to be one."""
    with pytest.raises(RefusedError) as refused:
        parse_request(route, encoded(body), limits)
    return refused.value.refusal


def refused(changes: dict[str, Any], route: str = "chat", **limits: int) -> Refusal:
    """The refusal of the plain request of a route with some fields changed."""
    return refusal({**PLAIN[route], **changes}, route, RequestLimits(**limits))


def crossed(parts: int, ways: int) -> dict[str, object]:
    """`ways` alternatives in each of so many parts that must all hold."""
    return {
        "allOf": [
            {"properties": {"x": {"anyOf": [{"const": f"{part} {way}"} for way in range(ways)]}}}
            for part in range(parts)
        ]
    }

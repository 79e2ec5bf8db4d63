"""The OpenAPI document of what is served, made from the tables that serve it.

Source: OpenAPI Specification 3.1.1. Served at GET /openapi.json, to keys of scope admin alone.
"""

from __future__ import annotations

from functools import lru_cache

from rayline import __version__
from rayline.serving.requests.fields import fields_of
from rayline.serving.requests.refusal import Tree
from rayline.serving.requests.routes import ROUTES, Entry
from rayline.spec import RequestLimits

_STREAMS = ("chat", "completions", "responses")
_ERROR: Tree = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
            "required": ["message", "type", "param", "code"],
            "additionalProperties": False,
        }
    },
    "required": ["error"],
    "additionalProperties": False,
}


@lru_cache(maxsize=8)
def openapi_document(limits: RequestLimits) -> Tree:
    """The document, as a tree. Called by the gateway."""
    paths: dict[str, Tree] = {}
    for entry in ROUTES:
        paths.setdefault(entry.path, {})[entry.method.lower()] = _operation(entry, limits)
    return {
        "openapi": "3.1.1",
        "info": {"title": "rayline", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": {"Error": _ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(entry: Entry, limits: RequestLimits) -> Tree:
    refused = {"$ref": "#/components/schemas/Error"}
    operation: Tree = {
        "operationId": f"{entry.method} {entry.path}",
        "summary": entry.summary,
        "responses": {
            "200": {"description": "The answer.", "content": _answers(entry)},
            "4XX": {
                "description": "The request is refused.",
                "content": {"application/json": {"schema": refused}},
            },
            "5XX": {
                "description": "Nobody can answer just now (503, with Retry-After), or one failed.",
                "content": {"application/json": {"schema": refused}},
            },
        },
        "security": [] if entry.scope is None else [{"key": [entry.scope]}],
    }
    if entry.route is not None:
        schema = fields_of(entry.route, limits).schema()
        operation["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": schema}},
        }
    if "{model}" in entry.path:
        named = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
        operation["parameters"] = [named]
    return operation


def _answers(entry: Entry) -> Tree:
    if entry.path in ("/metrics", "/-/healthz"):
        return {"text/plain": {"schema": {"type": "string"}}}
    whole: Tree = {"application/json": {"schema": {"type": "object"}}}
    if entry.route in _STREAMS:
        # 3.1 has no words for the events of a stream.
        return {**whole, "text/event-stream": {}}
    return whole

"""What may be asked, and what a refusal looks like: pure functions of the body.

routes.py has every path; fields.py what its body may hold, in the words of shapes.py; asked.py puts
a request through all of it. Nothing in here needs more than pydantic.
"""

from __future__ import annotations

from rayline.serving.requests.asked import Asked, check_request, parse_request
from rayline.serving.requests.body import check_content_type, read_json
from rayline.serving.requests.prompts import PromptSize
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
from rayline.serving.requests.routes import ROUTES, Entry, Route

__all__ = [
    "ROUTES",
    "Asked",
    "Entry",
    "PromptSize",
    "Refusal",
    "RefusedError",
    "Route",
    "Tree",
    "check_content_type",
    "check_request",
    "engine_failed",
    "event",
    "parse_request",
    "read_json",
    "refused_by_engine",
    "unavailable",
    "unknown_model",
]

"""From the bytes of a body to a JSON tree."""

from __future__ import annotations

import json
from typing import Never

from rayline.serving.requests.refusal import Refusal, RefusedError, Tree, refuse

MAX_BODY_BYTES = 4 * 2**20
"""Largest request body; the longest prompt of a 128k-token model is about 1 MiB of text."""


def read_json(body: bytes) -> Tree:
    """The object that a body holds. Raises RefusedError."""
    if len(body) > MAX_BODY_BYTES:
        raise RefusedError(
            Refusal(413, f"The body is larger than {MAX_BODY_BYTES} bytes.", code="body_too_large")
        )
    try:
        tree = json.loads(body.decode("utf-8"), parse_constant=_no_constant)
    except UnicodeDecodeError:
        refuse("The body is not UTF-8 text.", None, "invalid_json")
    except (ValueError, RecursionError) as wrong:
        where = f": {wrong}" if isinstance(wrong, ValueError) else ": nested too deeply"
        refuse(f"The body is not valid JSON{where}.", None, "invalid_json")
    if not isinstance(tree, dict):
        refuse("The body must be a JSON object.", None, "invalid_json")
    return tree


def _no_constant(name: str) -> Never:
    raise ValueError(f"{name} is not a JSON number")

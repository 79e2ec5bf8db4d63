"""What a refusal looks like: OpenAI's error body, and who may say what in it.

Source: OpenAI API reference, "Error codes".
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Never

Tree = dict[str, Any]

MAX_ENGINE_CHARS = 500
"""Most that is passed on of the engine's own words."""
_FILE = re.compile(r"(?<![\w/])(?:file://)?/(?!v1/)[\w.\-]+(?:/[\w.\-]+)+")
"""A path on one of our machines."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer that is an error, in OpenAI's shape."""

    status: int
    """HTTP status."""
    message: str
    type: str = "invalid_request_error"
    param: str | None = None
    code: str | None = None
    retry_after_s: int | None = None
    """Sent as Retry-After, where trying again helps."""

    def body(self) -> Tree:
        """The JSON body."""
        shape = {
            "message": self.message,
            "type": self.type,
            "param": self.param,
            "code": self.code,
        }
        return {"error": shape}


class RefusedError(Exception):
    """Carries a Refusal out of a check."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


def refuse(message: str, param: str | None, code: str) -> Never:
    """Raise RefusedError of a request that is wrong in `param`."""
    raise RefusedError(Refusal(400, message, param=param, code=code))


def unknown_model(asked: str) -> Refusal:
    """The model that was asked for is not served here."""
    return Refusal(
        404, f"The model {asked[:200]!r} does not exist.", param="model", code="model_not_found"
    )


def refused_by_engine(status: int, message: str, param: str | None) -> Refusal:
    """What vLLM says of a request, in OpenAI's words. Called by a replica.

    vLLM puts the HTTP status in `code`; OpenAI a word, which client libraries compare. Of an error
    of its own vLLM tells what it met inside, so that message stays in the log; of a request that is
    wrong it may quote at length, or name a file.
    """
    if status >= 500:
        return engine_failed()
    too_long = "maximum context length" in message or param in ("input_tokens", "input_text")
    code = "context_length_exceeded" if too_long else None
    # 422 is FastAPI's word for a wrong type; OpenAI says 400.
    shown = _FILE.sub("a file", message.partition("Traceback (most")[0])[:MAX_ENGINE_CHARS].strip()
    return Refusal(400 if status == 422 else status, shown, param=param, code=code)


def engine_failed() -> Refusal:
    """The engine failed on this request; what happened stands in the log, not in the answer."""
    return Refusal(
        500,
        "The server failed to answer this request; its log holds the cause under the request id.",
        type="server_error",
        code="internal_error",
    )


def unavailable(why: str) -> Refusal:
    """Nobody can answer just now."""
    return Refusal(503, why, type="server_error", code="unavailable", retry_after_s=1)


def event(tree: Tree) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(tree, ensure_ascii=False)}\n\n"

"""OpenAI's HTTP shapes: which requests pass to the engine, and what a refusal looks like.

Everything here is a pure function of the request, so it is tested without a server. A field that is
not on the lists below is refused, as OpenAI does: vLLM takes many more, and some of them
(chat_template, kv_transfer_params, prompt_embeds, priority) are no client's business.

Source: OpenAI API reference, "Create chat completion", "Create completion" and "Error codes";
vllm/entrypoints/openai/*/protocol.py (0.32) for the sampling fields beyond them.
"""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass
from typing import Any, Literal, Never

Route = Literal["chat", "completions"]
Tree = dict[str, Any]

MAX_BODY_BYTES = 4 * 2**20
"""Largest request body; the longest prompt of a 128k-token model is about 1 MiB of text."""
MAX_CHOICES = 16
"""Largest `n`: each choice holds a sequence of the engine."""
MAX_STOPS = 16
"""Most stop strings: each is searched for after every token."""

_COMMON = {
    *("model", "stream", "stream_options", "max_tokens", "temperature", "top_p", "n", "stop"),
    *("seed", "presence_penalty", "frequency_penalty", "logit_bias", "logprobs", "user"),
    # vLLM's sampling beyond OpenAI's.
    *("top_k", "min_p", "repetition_penalty", "min_tokens", "stop_token_ids", "ignore_eos"),
    *("include_stop_str_in_output", "skip_special_tokens", "add_special_tokens", "bad_words"),
    *("return_token_ids", "response_format"),
}
_FIELDS: dict[Route, frozenset[str]] = {
    "chat": frozenset(
        {
            *_COMMON,
            *("messages", "max_completion_tokens", "top_logprobs", "tools", "tool_choice"),
            *("parallel_tool_calls", "reasoning_effort", "add_generation_prompt"),
            *("continue_final_message", "metadata", "store", "service_tier"),
        }
    ),
    "completions": frozenset({*_COMMON, "prompt", "echo", "suffix"}),
}
_REQUIRED: dict[Route, str] = {"chat": "messages", "completions": "prompt"}


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


@dataclass(frozen=True, slots=True)
class WholeAnswer:
    """An answer that does not stream: the JSON text of its body."""

    json_text: str


Reply = Refusal | WholeAnswer | str
"""What a replica hands back, piece by piece: one Refusal, or one WholeAnswer, or the events of a
stream as text (`data: {...}` and a blank line), the last of them `data: [DONE]`."""


def parse_request(route: Route, body: bytes, model: str) -> Tree:
    """The request as a tree, checked as far as it can be without the engine.

    Called by the gateway. `model` is the only model that is served. Raises RefusedError.
    """
    tree = _json_object(body)
    _check_model(tree, model)
    for name in tree:
        if name not in _FIELDS[route]:
            near = difflib.get_close_matches(name, _FIELDS[route], n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            _refuse(f"Unrecognized request argument: {name!r}.{hint}", name, "unknown_parameter")
    needed = _REQUIRED[route]
    if tree.get(needed) in (None, "", []):
        _refuse(f"{needed!r} is required and must not be empty.", needed, "missing_parameter")
    _check_limits(tree)
    return tree


def _json_object(body: bytes) -> Tree:
    if len(body) > MAX_BODY_BYTES:
        raise RefusedError(
            Refusal(413, f"The body is larger than {MAX_BODY_BYTES} bytes.", code="body_too_large")
        )
    try:
        tree = json.loads(body.decode("utf-8"), parse_constant=_no_constant)
    except UnicodeDecodeError:
        _refuse("The body is not UTF-8 text.", None, "invalid_json")
    except (ValueError, RecursionError) as wrong:
        where = f": {wrong}" if isinstance(wrong, ValueError) else ": nested too deeply"
        _refuse(f"The body is not valid JSON{where}.", None, "invalid_json")
    if not isinstance(tree, dict):
        _refuse("The body must be a JSON object.", None, "invalid_json")
    return tree


def _no_constant(name: str) -> Never:
    raise ValueError(f"{name} is not a JSON number")


def _check_model(tree: Tree, model: str) -> None:
    asked = tree.get("model")
    if asked is None:
        _refuse("'model' is required.", "model", "missing_parameter")
    if not isinstance(asked, str):
        _refuse("'model' must be a string.", "model", "invalid_type")
    if asked != model:
        raise RefusedError(unknown_model(asked))


def unknown_model(asked: str) -> Refusal:
    """The model that was asked for is not served here."""
    return Refusal(
        404, f"The model {asked[:200]!r} does not exist.", param="model", code="model_not_found"
    )


def _check_limits(tree: Tree) -> None:
    choices = tree.get("n")
    if choices is not None:
        if not isinstance(choices, int) or isinstance(choices, bool):
            _refuse("'n' must be an integer.", "n", "invalid_type")
        if not 1 <= choices <= MAX_CHOICES:
            _refuse(f"'n' must be between 1 and {MAX_CHOICES}.", "n", "invalid_value")
    stops = tree.get("stop")
    if isinstance(stops, list) and len(stops) > MAX_STOPS:
        _refuse(f"'stop' may hold at most {MAX_STOPS} strings.", "stop", "invalid_value")


def _refuse(message: str, param: str | None, code: str) -> Never:
    raise RefusedError(Refusal(400, message, param=param, code=code))


def refused_by_engine(status: int, message: str, param: str | None) -> Refusal:
    """What vLLM says of a request, in OpenAI's words. Called by a replica.

    vLLM puts the HTTP status in `code`; OpenAI a word, which client libraries compare. Of an error
    of its own vLLM tells what it met inside, so that message stays in the log.
    """
    if status >= 500:
        return engine_failed()
    too_long = "maximum context length" in message or param in ("input_tokens", "input_text")
    code = "context_length_exceeded" if too_long else None
    # 422 is FastAPI's word for a wrong type; OpenAI says 400.
    return Refusal(400 if status == 422 else status, message, param=param, code=code)


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

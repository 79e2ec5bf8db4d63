"""Which fields each route takes, and which requests pass to the engine.

Everything here is a pure function of the request, so it is tested without a server. A field that is
not on the lists below is refused, as OpenAI does: vLLM takes many more, and some of them
(chat_template, kv_transfer_params, prompt_embeds, priority) are no client's business.

Source: OpenAI API reference, "Create chat completion", "Create completion";
vllm/entrypoints/openai/*/protocol.py (0.32) for the sampling fields beyond them.
"""

from __future__ import annotations

import difflib
from typing import Literal

from rayline.serving.requests.body import read_json
from rayline.serving.requests.refusal import RefusedError, Tree, refuse, unknown_model

Route = Literal["chat", "completions"]

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


def parse_request(route: Route, body: bytes, model: str) -> Tree:
    """The request as a tree, checked as far as it can be without the engine.

    Called by the gateway. `model` is the only model that is served. Raises RefusedError.
    """
    tree = read_json(body)
    _check_model(tree, model)
    for name in tree:
        if name not in _FIELDS[route]:
            near = difflib.get_close_matches(name, _FIELDS[route], n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            refuse(f"Unrecognized request argument: {name!r}.{hint}", name, "unknown_parameter")
    needed = _REQUIRED[route]
    if tree.get(needed) in (None, "", []):
        refuse(f"{needed!r} is required and must not be empty.", needed, "missing_parameter")
    _check_limits(tree)
    return tree


def _check_model(tree: Tree, model: str) -> None:
    asked = tree.get("model")
    if asked is None:
        refuse("'model' is required.", "model", "missing_parameter")
    if not isinstance(asked, str):
        refuse("'model' must be a string.", "model", "invalid_type")
    if asked != model:
        raise RefusedError(unknown_model(asked))


def _check_limits(tree: Tree) -> None:
    choices = tree.get("n")
    if choices is not None:
        if not isinstance(choices, int) or isinstance(choices, bool):
            refuse("'n' must be an integer.", "n", "invalid_type")
        if not 1 <= choices <= MAX_CHOICES:
            refuse(f"'n' must be between 1 and {MAX_CHOICES}.", "n", "invalid_value")
    stops = tree.get("stop")
    if isinstance(stops, list) and len(stops) > MAX_STOPS:
        refuse(f"'stop' may hold at most {MAX_STOPS} strings.", "stop", "invalid_value")

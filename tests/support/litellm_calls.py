"""LiteLLM's client against an endpoint: run as a script in LiteLLM's own environment.

    python litellm_calls.py URL KEY MODEL generate|embed LOGIT_BIAS

It prints what came of each call as one JSON object.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import litellm

SCHEMA = {
    "type": "object",
    "properties": {"sure": {"type": "boolean"}},
    "required": ["sure"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA}}
TOOL = {"type": "function", "function": {"name": "tell", "parameters": SCHEMA}}
CHOICE = {"type": "function", "function": {"name": "tell"}}
HELLO = [{"role": "user", "content": "What is the capital of France?"}]


def generate(logit_bias: dict[str, int], **to: Any) -> dict[str, Any]:
    ask: dict[str, Any] = {"messages": HELLO, "temperature": 0, "max_tokens": 24, **to}
    whole = litellm.completion(**ask)
    pieces = list(litellm.completion(**ask, stream=True, stream_options={"include_usage": True}))
    ask["logit_bias"] = logit_bias
    called = litellm.completion(**ask, tools=[TOOL], tool_choice=CHOICE)
    held = litellm.completion(**ask, response_format=FORMAT)
    return {
        "text": whole.choices[0].message.content,
        "usage": whole.usage.completion_tokens,
        "streamed": "".join(p.choices[0].delta.content or "" for p in pieces if p.choices),
        "called": called.choices[0].message.tool_calls[0].function.model_dump(),
        "held": held.choices[0].message.content,
        "errors": {
            "no such model": refused(
                lambda: litellm.completion(**{**ask, "model": "openai/other"})
            ),
            "wrong key": refused(lambda: litellm.completion(**{**ask, "api_key": "rl-wrong"})),
            "wrong field": refused(lambda: litellm.completion(**{**ask, "temperature": 7})),
        },
    }


def embed(**to: Any) -> dict[str, Any]:
    found = litellm.embedding(input=["one", "two"], **to)
    return {"vectors": [len(one["embedding"]) for one in found.data]}


def refused(call: Callable[[], object]) -> str:
    """The name of LiteLLM's error."""
    try:
        call()
    except Exception as wrong:
        return type(wrong).__name__
    return "none"


def main() -> None:
    url, key, model, what, bias = sys.argv[1:]
    litellm.telemetry = False
    litellm.num_retries = 0
    to = {"model": f"openai/{model}", "api_base": url, "api_key": key}
    print(json.dumps(generate(json.loads(bias), **to) if what == "generate" else embed(**to)))


if __name__ == "__main__":
    main()

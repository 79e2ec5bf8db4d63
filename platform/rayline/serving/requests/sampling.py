"""Fields that say how an answer is generated, and in what form.

Source: OpenAI API reference, "Create chat completion" and "Create completion"; beyond them vLLM's
sampling parameters (0.32, vllm/sampling_params.py), whose bounds these are.
"""

from __future__ import annotations

from rayline.serving.requests.patterns import Pattern
from rayline.serving.requests.schemas import MAX_ENUM_VALUES, Schema
from rayline.serving.requests.shapes import Either, Fields, ListOf, MapOf, Tagged
from rayline.serving.requests.values import Flag, Number, Shape, Text, TokenIds, Whole, Word
from rayline.spec import RequestLimits

NAME = r"[A-Za-z0-9_.\-]{1,128}"
"""What a tool or a schema may be called."""
MAX_LABEL_CHARS = 512
"""Longest string that names something: a user, a session, a call."""

_MAX_STOP_TOKENS = 128
_INT64 = 2**63


def label() -> Text:
    """A short string of the client's own."""
    return Text(most=MAX_LABEL_CHARS)


def sampling(limits: RequestLimits) -> dict[str, Shape]:
    """Of every route that generates."""
    stop = Text(most=limits.max_stop_chars, least=1)
    return {
        "temperature": Number(0, 2),
        "top_p": Number(0, 1, above_low=True),
        "presence_penalty": Number(-2, 2),
        "frequency_penalty": Number(-2, 2),
        "logit_bias": MapOf(
            Text(most=len(str(limits.max_token_id)), least=1, pattern=r"[0-9]+"),
            Number(-100, 100),
            most=limits.max_logit_bias,
        ),
        "seed": Whole(-_INT64, _INT64 - 1),
        "stop": Either({"string": stop, "array": ListOf(stop, most=limits.max_stops)}),
        "user": label(),
        "top_k": Whole(-1, limits.max_token_id),
        "min_p": Number(0, 1),
        "repetition_penalty": Number(0, 10, above_low=True),
        "stop_token_ids": TokenIds(limits.max_token_id, most=_MAX_STOP_TOKENS, least=0),
        "ignore_eos": Flag(),
        "include_stop_str_in_output": Flag(),
        "skip_special_tokens": Flag(),
    }


def generation(limits: RequestLimits) -> dict[str, Shape]:
    """Of chat and completions."""
    return {
        **sampling(limits),
        "n": Whole(1, limits.max_choices),
        "stream": Flag(),
        "stream_options": Fields({"include_usage": Flag(), "continuous_usage_stats": Flag()}),
        "min_tokens": Whole(0, limits.max_output_tokens),
        "bad_words": ListOf(Text(most=limits.max_stop_chars, least=1), most=limits.max_bad_words),
        "add_special_tokens": Flag(),
        "return_token_ids": Flag(),
        "response_format": response_format(limits),
        "structured_outputs": structured_outputs(limits),
        "prompt_cache_key": label(),
        "safety_identifier": label(),
    }


def response_format(limits: RequestLimits) -> Tagged:
    """OpenAI's way to ask for JSON."""
    inner = Fields(_named_schema(limits), required=("name", "schema"))
    return Tagged(
        "type",
        {
            "text": Fields({"type": Word(("text",))}),
            "json_object": Fields({"type": Word(("json_object",))}),
            "json_schema": Fields(
                {"type": Word(("json_schema",)), "json_schema": inner}, required=("json_schema",)
            ),
        },
    )


def text_format(limits: RequestLimits) -> Tagged:
    """The same in the Responses API."""
    return Tagged(
        "type",
        {
            "text": Fields({"type": Word(("text",))}),
            "json_object": Fields({"type": Word(("json_object",))}),
            "json_schema": Fields(
                {"type": Word(("json_schema",)), **_named_schema(limits)},
                required=("name", "schema"),
            ),
        },
    )


def _named_schema(limits: RequestLimits) -> dict[str, Shape]:
    return {
        "name": Text(most=128, least=1, pattern=NAME),
        "description": Text(most=limits.max_text_chars),
        "schema": Schema(limits, steers=True),
        "strict": Flag(),
    }


def structured_outputs(limits: RequestLimits) -> Fields:
    """vLLM's way, which also knows patterns and lists of choices."""
    return Fields(
        {
            "json": Schema(limits, steers=True),
            "json_object": Flag(only=True),
            "regex": Pattern(limits.max_pattern_chars),
            "choice": ListOf(Text(most=MAX_LABEL_CHARS, least=1), most=MAX_ENUM_VALUES, least=1),
            "disable_any_whitespace": Flag(),
        },
        withheld={
            # Of llguidance, too, an ambiguous grammar asks for 90 ms a token (measured).
            "grammar": "What a grammar costs cannot be told before it runs.",
            "structural_tag": "Ask with tools, or with response_format.",
        },
    )

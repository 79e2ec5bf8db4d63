"""Which fields each route takes.

What is not named here is refused, as OpenAI does: vLLM takes many more, and some of them reach into
the servers (kv_transfer_params), run what a client sends (chat_template), or load it
(prompt_embeds).

Source: OpenAI API reference for each route; vllm/entrypoints/**/protocol.py (0.32) for scores,
tokens, and the sampling parameters beyond OpenAI's.
"""

from __future__ import annotations

from functools import lru_cache

from rayline.serving.requests.messages import (
    messages,
    response_input,
    response_tool_choice,
    response_tools,
    tool_choice,
    tools,
)
from rayline.serving.requests.routes import Route
from rayline.serving.requests.sampling import generation, label, sampling, text_format
from rayline.serving.requests.shapes import ByFirst, Either, Fields, ListOf, MapOf
from rayline.serving.requests.values import Flag, Shape, Text, TokenIds, Whole, Word
from rayline.spec import RequestLimits

_SERVERS = "The server sets it."
_TEMPLATE = "The server renders with the model's own template; reasoning_effort is what it takes."
_STATELESS = "Nothing is stored here: send the whole conversation."
_TOOLS = "Use tools and tool_choice."
_FORMAT = "Use response_format, or structured_outputs."
_TEXT = "Prompts are text or token ids."

WITHHELD: dict[str, str] = {
    **dict.fromkeys(("kv_transfer_params", "ec_transfer_params", "vllm_xargs"), _SERVERS),
    **dict.fromkeys(("priority", "request_id", "session_id", "cache_salt"), _SERVERS),
    **dict.fromkeys(("chat_template", "chat_template_kwargs"), _TEMPLATE),
    **dict.fromkeys(("prompt_embeds", "mm_processor_kwargs", "media_io_kwargs"), _TEXT),
    **dict.fromkeys(("mm_payload", "return_mm_kwargs", "modalities", "audio"), _TEXT),
    **dict.fromkeys(("functions", "function_call"), _TOOLS),
    **dict.fromkeys(("guided_json", "guided_regex", "guided_choice", "guided_grammar"), _FORMAT),
    **dict.fromkeys(("background", "previous_response_id", "conversation"), _STATELESS),
    "suffix": "No engine here fills in the middle.",
    "use_beam_search": "Ask for choices with n.",
    "best_of": "Ask for choices with n.",
}
"""Fields that clients know of and may not send: what to tell them."""


@lru_cache(maxsize=256)
def fields_of(route: Route, limits: RequestLimits) -> Fields:
    """What the body of a route holds."""
    shapes, required = {
        "chat": _chat,
        "completions": _completions,
        "embeddings": _embeddings,
        "responses": _responses,
        "score": _score,
        "rerank": _rerank,
        "tokenize": _tokenize,
        "detokenize": _detokenize,
    }[route](limits)
    return Fields({"model": Text(most=256, least=1), **shapes}, ("model", *required), WITHHELD)


Described = tuple[dict[str, Shape], tuple[str, ...]]
"""The fields of a route, and which of them are required."""


def _output(limits: RequestLimits, least: int = 1) -> Whole:
    return Whole(least, limits.max_output_tokens)


def _metadata(limits: RequestLimits) -> MapOf:
    return MapOf(Text(most=64, least=1), Text(most=512), most=limits.max_metadata)


def _chat(limits: RequestLimits) -> Described:
    return {
        "messages": messages(limits),
        "max_tokens": _output(limits),
        "max_completion_tokens": _output(limits),
        "logprobs": Flag(),
        "top_logprobs": Whole(0, limits.max_top_logprobs),
        "tools": tools(limits),
        "tool_choice": tool_choice(),
        "parallel_tool_calls": Flag(),
        "reasoning_effort": Word(("none", "minimal", "low", "medium", "high", "xhigh", "max")),
        "include_reasoning": Flag(),
        "add_generation_prompt": Flag(),
        "continue_final_message": Flag(),
        "metadata": _metadata(limits),
        "store": Flag(only=False),
        "service_tier": Word(("auto", "default")),
        **generation(limits),
    }, ("messages",)


def _completions(limits: RequestLimits) -> Described:
    return {
        "prompt": _prompts(limits, limits.max_sequences),
        # 0 with echo asks for the prompt's own logprobs.
        "max_tokens": _output(limits, least=0),
        "logprobs": Whole(0, limits.max_top_logprobs),
        "echo": Flag(),
        **generation(limits),
    }, ("prompt",)


def _prompts(limits: RequestLimits, most: int) -> Either:
    """A text, the ids of its tokens, or several of either."""
    text = Text(most=limits.max_text_chars, least=1)
    ids = TokenIds(limits.max_token_id, most=limits.max_text_chars)
    several: dict[str, Shape] = {
        "string": ListOf(text, most=most),
        "integer": ids,
        "array": ListOf(ids, most=most),
    }
    return Either({"string": text, "array": ByFirst(several)})


def _embeddings(limits: RequestLimits) -> Described:
    return {
        "input": _prompts(limits, limits.max_inputs),
        "encoding_format": Word(("float", "base64")),
        "dimensions": Whole(1, 2**16),
        "add_special_tokens": Flag(),
        **_pooling(limits),
    }, ("input",)


def _pooling(limits: RequestLimits) -> dict[str, Shape]:
    return {
        "user": label(),
        "prompt_cache_key": label(),
        "safety_identifier": label(),
        "truncate_prompt_tokens": Whole(-1, limits.max_token_id),
    }


def _texts(limits: RequestLimits) -> Either:
    text = Text(most=limits.max_text_chars, least=1)
    return Either({"string": text, "array": ListOf(text, most=limits.max_inputs, least=1)})


def _score(limits: RequestLimits) -> Described:
    names = ("text_1", "text_2", "queries", "documents")
    return {**{name: _texts(limits) for name in names}, **_pooling(limits)}, ()


def _rerank(limits: RequestLimits) -> Described:
    text = Text(most=limits.max_text_chars, least=1)
    return {
        "query": text,
        "documents": ListOf(text, most=limits.max_inputs, least=1),
        "top_n": Whole(0, limits.max_inputs),
        **_pooling(limits),
    }, ("query", "documents")


def _tokenize(limits: RequestLimits) -> Described:
    return {
        "prompt": Text(most=limits.max_text_chars),
        "messages": messages(limits),
        "tools": tools(limits),
        "add_generation_prompt": Flag(),
        "continue_final_message": Flag(),
        "add_special_tokens": Flag(),
        "return_token_strs": Flag(),
    }, ()


def _detokenize(limits: RequestLimits) -> Described:
    ids = TokenIds(limits.max_token_id, most=limits.max_text_chars, least=0)
    return {"tokens": ids}, ("tokens",)


def _responses(limits: RequestLimits) -> Described:
    text = Fields({"format": text_format(limits), "verbosity": Word(("low", "medium", "high"))})
    reasoning = Fields(
        {
            "effort": Word(("none", "minimal", "low", "medium", "high", "xhigh")),
            "summary": Word(("auto", "concise", "detailed")),
        }
    )
    included = Word(("message.output_text.logprobs", "reasoning.encrypted_content"))
    return {
        **sampling(limits),
        "input": response_input(limits),
        "instructions": Text(most=limits.max_text_chars),
        "max_output_tokens": _output(limits),
        "tools": response_tools(limits),
        "tool_choice": response_tool_choice(),
        "parallel_tool_calls": Flag(),
        "text": text,
        "reasoning": reasoning,
        "include": ListOf(included, most=2),
        "include_reasoning": Flag(),
        "top_logprobs": Whole(0, limits.max_top_logprobs),
        "truncation": Word(("auto", "disabled")),
        "stream": Flag(),
        "metadata": _metadata(limits),
        "store": Flag(only=False),
        "service_tier": Word(("auto", "default")),
        "prompt_cache_key": label(),
        "safety_identifier": label(),
    }, ("input",)

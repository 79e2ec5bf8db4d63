"""Streams of plain chats are to the byte what vLLM makes of the same outputs."""

import asyncio
import re
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm.entrypoints.generate.base.protocol import RequestResponseMetadata
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.chat_completion.serving import OpenAIServingChat
from vllm.outputs import CompletionOutput, RequestOutput

from rayline.serving.replica.plain_stream import is_plain, quicken

pytestmark = pytest.mark.serve

PROMPT = [1, 2, 3]
Delta = tuple[str, list[int]]


def chat_layer() -> OpenAIServingChat:
    """vLLM's layer with no more than its streams look at: no engine belongs to it."""
    layer = object.__new__(OpenAIServingChat)
    layer.parser_cls = None
    layer.enable_force_include_usage = False
    layer.enable_log_outputs = False
    layer.enable_log_deltas = False
    layer.request_logger = None
    layer.response_role = "assistant"
    layer.system_fingerprint = "vllm-tiny"
    layer.enable_prompt_tokens_details = True
    layer.enable_per_request_metrics = False
    layer._include_reasoning_tokens_details = False
    return layer


async def outputs(
    deltas: list[Delta], reason: str, wrong: str | None
) -> AsyncGenerator[RequestOutput, None]:
    for number, (text, tokens) in enumerate(deltas):
        last = number == len(deltas) - 1 and wrong is None
        answer = CompletionOutput(
            index=0,
            text=text,
            token_ids=tokens,
            cumulative_logprob=None,
            logprobs=None,
            finish_reason=reason if last else None,
        )
        yield RequestOutput(
            request_id="r",
            prompt=None,
            prompt_token_ids=PROMPT,
            prompt_logprobs=None,
            outputs=[answer],
            finished=last,
            num_cached_tokens=2,
        )
    if wrong is not None:
        raise ValueError(wrong)


def events(
    layer: OpenAIServingChat,
    deltas: list[Delta],
    reason: str,
    wrong: str | None,
    **asked: Any,
) -> list[str]:
    """All that the client of one stream would get, but for the second that it began in."""
    message = {"role": "user", "content": "hello"}
    request = ChatCompletionRequest.model_validate(
        {"model": "tiny", "messages": [message], "stream": True, **asked}
    )

    async def collect() -> list[str]:
        made = layer.chat_completion_stream_generator(
            request,
            outputs(deltas, reason, wrong),
            "chatcmpl-1",
            'ti"ny',
            [],
            None,
            RequestResponseMetadata(request_id="chatcmpl-1"),
        )
        return [re.sub(r'"created":\d+', '"created":0', text) async for text in made]

    return asyncio.run(collect())


DELTA = st.tuples(st.text(max_size=8), st.lists(st.integers(0, 300), max_size=3))


@settings(max_examples=150)
@given(
    deltas=st.lists(DELTA, min_size=1, max_size=6),
    reason=st.sampled_from(["stop", "length", "error"]),
    wrong=st.sampled_from([None, None, "broken"]),
    usage=st.booleans(),
)
def test_as_vllm_makes_them(
    deltas: list[Delta], reason: str, wrong: str | None, usage: bool
) -> None:
    asked = {"stream_options": {"include_usage": True}} if usage else {}
    quick = chat_layer()
    quicken(quick)
    found = events(quick, deltas, reason, wrong, **asked)
    assert found == events(chat_layer(), deltas, reason, wrong, **asked)
    assert found[-1] == "data: [DONE]\n\n"


@pytest.mark.parametrize(
    "asked",
    [
        {"n": 2},
        {"logprobs": True, "top_logprobs": 1},
        {"echo": True},
        {"return_token_ids": True},
        {"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    ],
    ids=lambda asked: next(iter(asked)),
)
def test_what_holds_more_than_text_is_left_to_vllm(asked: dict[str, Any]) -> None:
    message = {"role": "user", "content": "hello"}
    tree = {"model": "tiny", "messages": [message], "stream": True}
    assert is_plain(ChatCompletionRequest.model_validate(tree), chat_layer())
    assert not is_plain(ChatCompletionRequest.model_validate(tree | asked), chat_layer())
    parsing = chat_layer()
    parsing.parser_cls = object
    assert not is_plain(ChatCompletionRequest.model_validate(tree), parsing)

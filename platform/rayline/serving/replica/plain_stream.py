"""A chat's stream where nothing but text comes: each piece made of one template.

vLLM's OpenAI layer builds and checks three objects a token, and encodes them; on a few cores that
is the largest part of what serving adds to computing. Where a stream can hold nothing but text (no
parser for tools or reasoning, no log probabilities, one choice, usage at its end alone), its pieces
between the first and the last differ in the text alone. So that layer makes the first piece and
what comes after the last token, and one piece as a template; the rest is the template with the text
in it, to the byte what that layer would have made. tests/serving/replica/ holds that.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, Protocol

from pydantic_core import to_json
from vllm.entrypoints.generate.base.protocol import DeltaMessage
from vllm.entrypoints.openai.chat_completion.protocol import (
    ChatCompletionRequest,
    ChatCompletionResponseStreamChoice,
    ChatCompletionStreamResponse,
)
from vllm.outputs import RequestOutput

_MARK = "the-text-of-the-piece"
_EVENT = "data: "


class ChatLayer(Protocol):
    """What is used of vLLM's OpenAIServingChat."""

    parser_cls: Any
    enable_force_include_usage: bool
    enable_log_outputs: bool
    chat_completion_stream_generator: Any


def quicken(layer: ChatLayer) -> None:
    """Let `layer` stream plain chats this way; others stay with it."""
    whole = layer.chat_completion_stream_generator

    def stream(
        request: ChatCompletionRequest,
        outputs: AsyncGenerator[RequestOutput, None],
        request_id: str,
        model: str,
        *more: Any,
        **named: Any,
    ) -> AsyncGenerator[str, None]:
        if not is_plain(request, layer):
            made: AsyncGenerator[str, None] = whole(
                request, outputs, request_id, model, *more, **named
            )
            return made
        told = _Told(outputs)
        events = whole(request, told, request_id, model, *more, **named)
        return _plain(told, events, model)

    layer.chat_completion_stream_generator = stream


def is_plain(request: ChatCompletionRequest, layer: ChatLayer) -> bool:
    """Whether nothing but text can come between the first and the last piece."""
    options = request.stream_options
    return not (
        layer.parser_cls is not None
        or layer.enable_force_include_usage
        or layer.enable_log_outputs
        or (options is not None and options.continuous_usage_stats)
        or (request.n or 1) > 1
        or request.logprobs
        or request.echo
        or request.return_token_ids
        or request.return_prompt_text
        or request.use_beam_search
    )


class _Told:
    """The outputs that vLLM's layer is told of: the first without what was generated, then the last
    with all tokens, which it counts."""

    def __init__(self, outputs: AsyncGenerator[RequestOutput, None]) -> None:
        self._outputs = outputs
        self._ready: list[RequestOutput] = []
        self._tokens: list[int] = []
        self._wrong: Exception | None = None

    async def next(self) -> RequestOutput | None:
        """The next output of the engine; None where there is none. What it raises is raised where
        vLLM's layer asks, which makes an event of it."""
        try:
            return await anext(self._outputs, None)
        except Exception as wrong:  # noqa: BLE001
            self._wrong = wrong
            return None

    def tell_first(self, output: RequestOutput) -> None:
        """What the first piece is made of."""
        first = RequestOutput(
            request_id=output.request_id,
            prompt=output.prompt,
            prompt_token_ids=output.prompt_token_ids,
            prompt_logprobs=None,
            outputs=[],
            finished=False,
            num_cached_tokens=output.num_cached_tokens,
        )
        first.num_cache_creation_tokens = output.num_cache_creation_tokens
        first.encoder_prompt_token_ids = output.encoder_prompt_token_ids
        self._ready.append(first)

    def count(self, tokens: list[int]) -> None:
        """Tokens whose piece was made elsewhere."""
        self._tokens += tokens

    def tell_last(self, output: RequestOutput) -> None:
        """What comes after the last token is made of."""
        (answer,) = output.outputs
        output.outputs = [dataclasses.replace(answer, token_ids=[*self._tokens, *answer.token_ids])]
        self._ready.append(output)

    def __aiter__(self) -> AsyncIterator[RequestOutput]:
        return self

    async def __anext__(self) -> RequestOutput:
        if self._ready:
            return self._ready.pop(0)
        if self._wrong is not None:
            raise self._wrong
        return await anext(self._outputs)


async def _plain(
    told: _Told, events: AsyncGenerator[str, None], model: str
) -> AsyncGenerator[str, None]:
    output = await told.next()
    if output is not None and not output.finished:
        told.tell_first(output)
        first = await anext(events)
        yield first
        before, behind = _template(first, model)
        anything = False
        while output is not None and not output.finished:
            (answer,) = output.outputs
            anything = anything or bool(answer.text or answer.token_ids)
            if anything:
                told.count(list(answer.token_ids))
                yield f"{before}{to_json(answer.text).decode()}{behind}"
            output = await told.next()
    if output is not None:
        told.tell_last(output)
    async for event in events:
        yield event


def _template(first: str, model: str) -> tuple[str, str]:
    """What stands before and behind the text of a piece, in a stream that began with `first`."""
    begun = json.loads(first.removeprefix(_EVENT))
    choice = ChatCompletionResponseStreamChoice(
        index=0,
        delta=DeltaMessage(content=_MARK),
        logprobs=None,
        finish_reason=None,
        token_ids=None,
    )
    piece = ChatCompletionStreamResponse(
        id=begun["id"],
        object=begun["object"],
        created=begun["created"],
        choices=[choice],
        model=model,
    )
    text = piece.model_dump_json(exclude_unset=True)
    before, behind = text.split(json.dumps(_MARK))
    return f"{_EVENT}{before}", f"{behind}\n\n"

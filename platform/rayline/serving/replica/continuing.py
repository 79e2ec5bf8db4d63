"""How a stream goes on that another replica began: the text is the one that would have come.

Two ways, and the gateway says which (gateway/survival.py):

- go on: the engine gets the prompt and the tokens that were sent as one prompt, and generates what
  is left. Right where the next token depends on those before it alone: greedy answers, and drawn
  ones without a seed.
- begin again: the engine gets the request as it was; its first tokens must be those that were sent,
  compared one by one, and are not sent again. For answers that depend on more: a seed, penalties, a
  grammar, log probabilities.

In both vLLM's OpenAI layer gets first one output with all that was sent, so that it counts and
parses on from there. The pieces that it makes of that are dropped.

Text is not a sum of its tokens' texts (half a character gives none yet, a stop string holds some
back), so the engine's detokenizer of the request is replaced by one that has read the prompt as the
prompt and the sent tokens as the answer. vLLM offers no way to do that; tests/serving/replica/
holds what is reached for here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncGenerator
from typing import Any

from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import SamplingParams
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.detokenizer import IncrementalDetokenizer

from rayline.serving.wire import Ask


class NotContinuedError(Exception):
    """The answer cannot go on as the one that was begun."""


class Continued:
    """One request of which some has been sent."""

    def __init__(self, engine: AsyncLLM, prompt: Any, params: SamplingParams, ask: Ask) -> None:
        self._engine = engine
        self._original_params = params
        self.prompt_ids: list[int] = list(prompt["prompt_token_ids"])
        self.emitted = list(ask.emitted)
        self.ended = ask.ended
        self.replaying = True
        self.text = ""
        """Of `emitted`, as far as it was sent."""
        self.prompt, self.params = prompt, params
        if not ask.repeat:
            self.prompt = {**prompt, "prompt_token_ids": [*self.prompt_ids, *self.emitted]}
            self.params = _shortened(params, len(self.emitted))
        self._swap = not ask.repeat

    def joined(self, request_id: str) -> None:
        """Called once the engine has the request, before anything can have come out of it."""
        if not self._swap:
            return
        state = self._engine.output_processor.request_states.get(request_id)
        if state is None or state.detokenizer is None or state.detokenizer.num_output_tokens():
            raise NotContinuedError("the engine was ahead")
        detokenizer = self.read_again(self.emitted)
        state.detokenizer = detokenizer
        # Where the engine sends several tokens at a time, it counts from here.
        state.sent_tokens_offset = len(self.emitted)

    def read_again(self, tokens: list[int]) -> IncrementalDetokenizer:
        """A detokenizer that stands behind `tokens` of the answer; their text has been taken."""
        detokenizer = IncrementalDetokenizer.from_new_request(
            self._engine.output_processor.tokenizer,
            EngineCoreRequest(
                request_id="continued",
                prompt_token_ids=self.prompt_ids,
                mm_features=None,
                sampling_params=self._original_params,
                pooling_params=None,
                arrival_time=0.0,
                lora_request=None,
                cache_salt=None,
                data_parallel_rank=None,
            ),
        )
        detokenizer.update(tokens, False)
        self.text = detokenizer.get_next_output_text(False, True)
        return detokenizer

    def sent(self, *, finished: bool = False) -> RequestOutput:
        """All that was sent, as one output."""
        answer = CompletionOutput(
            index=0,
            text=self.text,
            token_ids=self.emitted,
            cumulative_logprob=None,
            logprobs=None,
            finish_reason="stop" if finished else None,
        )
        return RequestOutput(
            request_id="continued",
            prompt=None,
            prompt_token_ids=self.prompt_ids,
            prompt_logprobs=None,
            outputs=[answer],
            finished=finished,
        )

    def restored(self, output: RequestOutput) -> RequestOutput:
        """An output of the longer prompt as one of the prompt that was asked."""
        output.prompt_token_ids = self.prompt_ids
        return output


async def go_on(
    continued: Continued, outputs: AsyncGenerator[RequestOutput, None]
) -> AsyncGenerator[RequestOutput, None]:
    """What was sent, then what comes behind it."""
    if continued.ended:
        # Only the end of the stream is missing: which reason it ended for has been sent.
        continued.read_again(continued.emitted)
        yield continued.sent(finished=True)
        return
    first = True
    async for output in outputs:
        if first:
            yield continued.sent()
            continued.replaying = first = False
        yield continued.restored(output)


async def begin_again(
    continued: Continued, outputs: AsyncGenerator[RequestOutput, None]
) -> AsyncGenerator[RequestOutput, None]:
    """The answer from its first token; what was sent stands in one output. Raises
    NotContinuedError where another answer comes out."""
    sent, text = continued.emitted, ""
    tokens: list[int] = []
    kept: list[CompletionOutput] = []
    async for output in outputs:
        if len(tokens) >= len(sent):
            continued.replaying = False
            yield output
            continue
        (answer,) = output.outputs
        kept.append(answer)
        tokens += answer.token_ids
        text += answer.text
        if tokens[: len(sent)] != sent[: len(tokens)]:
            raise NotContinuedError("the answer came out otherwise")
        if len(tokens) < len(sent):
            continue
        continued.read_again(sent)
        yield continued.sent(finished=continued.ended)
        if continued.ended:
            return
        continued.replaying = False
        over = len(tokens) - len(sent)
        if over or output.finished:
            output.outputs = [_end_of(answer, over, text[len(continued.text) :])]
            yield output


def _end_of(answer: CompletionOutput, tokens: int, text: str) -> CompletionOutput:
    """The last `tokens` of an output."""
    begin = len(answer.token_ids) - tokens
    return dataclasses.replace(
        answer,
        text=text,
        token_ids=list(answer.token_ids)[begin:],
        logprobs=None if answer.logprobs is None else answer.logprobs[begin:],
    )


def _shortened(params: SamplingParams, emitted: int) -> SamplingParams:
    """Sampling for what is left of an answer."""
    left = params.clone()
    if left.max_tokens is not None:
        left.max_tokens = max(1, left.max_tokens - emitted)
    left.min_tokens = max(0, left.min_tokens - emitted)
    return left

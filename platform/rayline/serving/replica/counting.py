"""What each request takes of vLLM's engine, to the token: also of one that was cut off.

vLLM's OpenAI layer asks the engine client for outputs in `generate`, and tells nobody of what was
generated for a client that has left. So `generate` is done here instead, on the client's public
`add_request` and `abort`: every output is entered in the Tally of its request before that layer
sees it, and what nobody has fetched is entered when the request is cut off. The sums are those of
vLLM's own counters (vllm:prompt_tokens, vllm:generation_tokens); tests/serving/test_live.py holds
that.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextvars import ContextVar
from typing import Any

from vllm.outputs import STREAM_FINISHED, PoolingRequestOutput, RequestOutput
from vllm.sampling_params import SamplingParams
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError

from rayline.serving.replica.continuing import (
    Continued,
    NotContinuedError,
    begin_again,
    go_on,
)
from rayline.serving.wire import Ask, Usage


class Tally:
    """One request's outputs as they come."""

    def __init__(self, ask: Ask) -> None:
        self.ask = ask
        self.replaying = False
        """Whether what comes now has been sent by another replica."""
        self.finished = False
        """Whether the last output has come."""
        self.wrong: Exception | None = None
        """Why it cannot go on: vLLM's OpenAI layer makes an event of its own of what is raised."""
        self._fresh: list[int] = []
        self._sent = len(ask.emitted) if ask.repeat else 0
        self._original_prompt: int | None = None
        self._prompts: dict[str, tuple[int, int]] = {}
        self._completion_tokens = 0
        self._waited_s = self._computed_s = 0.0

    def add(self, output: RequestOutput) -> None:
        """Enter what the engine has generated."""
        tokens = [token for one in output.outputs for token in one.token_ids]
        self._fresh += tokens[self._sent :]
        self._sent = max(0, self._sent - len(tokens))
        self._completion_tokens += len(tokens)
        self.finished = output.finished
        # Its prompt is computed once a token comes out; an answer cut off before took nothing.
        if tokens:
            self.enter_prompt(output)
        if (times := output.metrics) is not None and times.scheduled_ts:
            self._waited_s = times.scheduled_ts - times.queued_ts
            self._computed_s = max(0.0, times.last_token_ts - times.scheduled_ts)

    def enter_prompt(self, output: RequestOutput | PoolingRequestOutput) -> None:
        """Enter what was computed of a prompt, once."""
        prompt = len(output.prompt_token_ids or ())
        self._prompts.setdefault(output.request_id, (prompt, output.num_cached_tokens or 0))

    def take(self) -> tuple[int, ...]:
        """The tokens since the last call."""
        fresh, self._fresh = tuple(self._fresh), []
        return fresh

    def continues(self, prompt_tokens: int) -> None:
        """The prompt as the client knows it; the engine's may hold what was sent, too."""
        self._original_prompt = prompt_tokens

    def usage(self) -> Usage:
        """What the answer has taken; of one that was continued, both parts."""
        prompt = sum(prompt for prompt, _ in self._prompts.values())
        before = 0 if self.ask.repeat else len(self.ask.emitted)
        return Usage(
            prompt_tokens=prompt if self._original_prompt is None else self._original_prompt,
            cached_tokens=sum(cached for _, cached in self._prompts.values()),
            completion_tokens=before + self._completion_tokens,
            waited_ms=1000 * self._waited_s,
            computed_ms=1000 * self._computed_s,
        )


CURRENT: ContextVar[Tally | None] = ContextVar("tally", default=None)
"""The tally of the request that this task answers. vLLM's OpenAI layer passes nothing of ours on
to `generate`, but it calls it from the request's own task."""


def count_generations(engine: AsyncLLM) -> None:
    """Let every request of `engine` be tallied and, where its Ask says so, continued."""

    async def generate(
        prompt: Any, sampling_params: SamplingParams, request_id: str, **more: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        tally = CURRENT.get()
        if tally is None or not tally.ask.emitted:
            outputs = _outputs(engine, tally, prompt, sampling_params, request_id, more)
            async for output in outputs:
                yield output
            return
        continued = Continued(engine, prompt, sampling_params, tally.ask)
        tally.continues(len(continued.prompt_ids))
        begun = begin_again if tally.ask.repeat else go_on
        outputs = _outputs(
            engine, tally, continued.prompt, continued.params, request_id, more, continued
        )
        try:
            async for output in begun(continued, outputs):
                # All that this becomes is yielded before the next output is asked for.
                tally.replaying = continued.replaying
                yield output
            tally.replaying = False
        except NotContinuedError as wrong:
            tally.wrong = wrong
            raise

    engine.generate = generate  # type: ignore[method-assign]
    plain = engine.encode

    async def encode(*args: Any, **more: Any) -> AsyncGenerator[PoolingRequestOutput, None]:
        tally = CURRENT.get()
        async for output in plain(*args, **more):
            if tally is not None:
                tally.enter_prompt(output)
            yield output

    engine.encode = encode  # type: ignore[method-assign]


async def _outputs(
    engine: AsyncLLM,
    tally: Tally | None,
    prompt: Any,
    params: SamplingParams,
    request_id: str,
    more: dict[str, Any],
    continued: Continued | None = None,
) -> AsyncGenerator[RequestOutput, None]:
    """What AsyncLLM.generate yields (vllm 0.32), with each output entered first."""
    queue = None
    try:
        queue = await engine.add_request(request_id, prompt, params, **more)
        if continued is not None:
            continued.joined(queue.request_id)
        finished = False
        while not finished:
            output = queue.get_nowait() or await queue.get()
            finished = output.finished
            if output is not STREAM_FINISHED and isinstance(output, RequestOutput):
                if tally is not None:
                    tally.add(output)
                yield output
    except (asyncio.CancelledError, GeneratorExit):
        if queue is not None:
            await engine.abort(queue.request_id, internal=True)
            left = queue.get_nowait()
            if tally is not None and isinstance(left, RequestOutput):
                tally.add(left)
        raise
    except (EngineDeadError, NotContinuedError) as wrong:
        if tally is not None:
            tally.wrong = wrong
        raise
    finally:
        if queue is not None:
            queue.close()

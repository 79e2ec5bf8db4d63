"""Stands where vLLM stands, as wire.Engine: each prompt is a way to behave.

Its answer to a prompt is the prompt's words over and over, one word a token; token ids count up
from 0, so what comes behind emitted tokens is known.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator

from rayline.errors import ServingError
from rayline.serving.requests import Refusal
from rayline.serving.wire import Ask, Item, Load, Piece, Usage, WholeAnswer


def words(prompt: str, tokens: int) -> list[str]:
    """The oracle: what an answer of so many tokens says."""
    spoken = prompt.split()
    return [spoken[place % len(spoken)] for place in range(tokens)]


class ScriptedEngine:
    """Answers in one event loop; `token_s` is how long a token takes."""

    def __init__(self, name: str = "one", token_s: float = 0.0) -> None:
        self.name = name
        self.token_s = token_s
        self.asked: list[Ask] = []
        self.usages: dict[str, Usage] = {}
        self.generated = 0
        self.running = 0
        self.dies_after: int | None = None
        """Tokens until the engine is gone."""

    async def answer(self, ask: Ask) -> AsyncGenerator[Item, None]:
        self.asked.append(ask)
        self.running += 1
        try:
            async for item in self._items(ask):
                yield item
        finally:
            self.running -= 1
        yield self.usages.pop(ask.request_id)

    async def _items(self, ask: Ask) -> AsyncGenerator[Item, None]:
        prompt = ask.tree["prompt"] if ask.route == "completions" else "hello there"
        count = ask.tree.get("max_tokens") or 4
        self.usages[ask.request_id] = Usage(len(prompt.split()), 0, len(ask.emitted))
        if prompt == "refuse":
            yield Refusal(400, "no", param="prompt")
            return
        if prompt == "fail":
            raise RuntimeError("secret in /srv/app/model.py")
        if prompt == "nothing":
            return
        if ask.tree.get("kv_transfer_params", {}).get("do_remote_decode"):
            await self._generate(ask)
            yield whole(prompt, kv_transfer_params={"pages_of": self.name})
            return
        said = words(prompt, count)
        if not ask.tree.get("stream"):
            for _ in said:
                await self._generate(ask)
            yield whole(" ".join(said))
            return
        for token in range(len(ask.emitted), count):
            await self._generate(ask)
            yield Piece(event(said[token]), (token,), token == count - 1)
        yield Piece(b"data: [DONE]\n\n")

    async def _generate(self, ask: Ask) -> None:
        if self.dies_after is not None and self.generated >= self.dies_after:
            raise ServingError("engine", "is gone")
        await asyncio.sleep(self.token_s)
        self.generated += 1
        before = self.usages[ask.request_id]
        self.usages[ask.request_id] = Usage(
            before.prompt_tokens, 0, before.completion_tokens + 1, 1.0, 2.0
        )

    def usage_of(self, request_id: str) -> Usage:
        return self.usages.pop(request_id, Usage())

    def load(self) -> Load:
        return Load(0, self.running, 0.0, self.generated)


def event(word: str) -> bytes:
    """A chunk of a completion."""
    choice = {"text": word + " ", "index": 0, "finish_reason": None}
    return f"data: {json.dumps({'choices': [choice]})}\n\n".encode()


def whole(text: str, **more: object) -> WholeAnswer:
    """An answer that fits both routes."""
    message = {"role": "assistant", "content": text}
    choice = {"message": message, "text": text, "finish_reason": "stop", "index": 0}
    usage = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
    return WholeAnswer(json.dumps({"choices": [choice], "usage": usage, **more}).encode())

"""A rehearsal: an engine that answers by rule, without a model.

It stands where vLLM stands in a replica and speaks the same interface (wire.Engine), so that all
around it can be tried at full size where no GPU is: a rollout, a client, a fault. One token is one
word. What an answer says follows from the prompt alone: `oracle` tells it beforehand, so whoever
kills replicas can compare what came out to what had to. Its times are those of the spec and say
nothing of a model's speed.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import random
import struct
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rayline.errors import ServingError
from rayline.serving.requests import Refusal, Tree, engine_failed, event, refused_by_engine
from rayline.serving.wire import Ask, Item, Load, Piece, Usage, WholeAnswer
from rayline.spec import RehearsalSpec

_SYLLABLES = [first + second for first in "bdfghjklmnprstvz" for second in "aeio"]
VOCABULARY = len(_SYLLABLES) ** 2
"""Words of two syllables, a token each."""
_DONE = b"data: [DONE]\n\n"
_PAGES = "kv_transfer_params"
_REHEARSED = {"rehearsed": True}
"""Where the pages of a prompt lie that one rehearsal has computed for another."""
Prompt = str | list[Any]
"""A text, the ids of its tokens, or the messages of a chat."""


def oracle(prompt: Prompt, tokens: int, choice: int = 0) -> str:
    """The first `tokens` words of the answer to a prompt. `choice` counts from 0 where a request
    asks for several answers. Called by whoever wants to know what has to come out."""
    return "".join(word(token) for token in oracle_tokens(prompt, tokens, choice))


def oracle_tokens(prompt: Prompt, tokens: int, choice: int = 0) -> list[int]:
    """The ids of those words."""
    asked = f"{choice} {json.dumps(prompt, sort_keys=True)}"
    seed = hashlib.blake2b(asked.encode(), digest_size=32).digest()
    return [_token_at(seed, place) for place in range(tokens)]


def word(token: int) -> str:
    """A token's text."""
    first, second = divmod(token, len(_SYLLABLES))
    return f"{_SYLLABLES[first]}{_SYLLABLES[second]} "


def embedding(text: Prompt, dims: int) -> list[float]:
    """A text's embedding: a unit vector that follows from the text alone."""
    draw = random.Random(json.dumps(text))
    raw = [draw.gauss(0, 1) for _ in range(dims)]
    length = sum(one * one for one in raw) ** 0.5
    return [one / length for one in raw]


def _token_at(seed: bytes, place: int) -> int:
    found = hashlib.blake2b(struct.pack("!I", place), key=seed, digest_size=4).digest()
    return int.from_bytes(found, "big") % VOCABULARY


@dataclass(slots=True)
class _Work:
    """One request's way through the engine."""

    prompt_tokens: int
    began_s: float = field(default_factory=time.monotonic)
    slot_s: float | None = None
    """When it got its slot."""
    last_s: float = 0.0
    """When something last came out of it."""
    computed: bool = False
    """Whether anything has: only then the prompt counts, as with vLLM."""
    completion_tokens: int = 0

    def came(self, tokens: int) -> None:
        """Enter what has just been computed: so many tokens, or an embedding."""
        self.computed = True
        self.completion_tokens += tokens
        self.last_s = time.monotonic()

    def usage(self) -> Usage:
        """What the engine has done for it."""
        slot_s = time.monotonic() if self.slot_s is None else self.slot_s
        return Usage(
            prompt_tokens=self.prompt_tokens if self.computed else 0,
            completion_tokens=self.completion_tokens,
            waited_ms=1000 * (slot_s - self.began_s),
            computed_ms=1000 * max(0.0, self.last_s - slot_s),
        )


class Rehearsal:
    """The engine of one replica. Used within one event loop."""

    def __init__(self, spec: RehearsalSpec, model: str, max_model_len: int) -> None:
        self._spec = spec
        self._model = model
        self._max_model_len = max_model_len
        self._slots = asyncio.Semaphore(spec.slots)
        self._waiting = 0
        self._running: list[_Work] = []
        self._generated_tokens = 0
        self._cut_off: dict[str, Usage] = {}

    @staticmethod
    async def start(spec: RehearsalSpec, model: str, max_model_len: int) -> Rehearsal:
        """One that is up. Raises ServingError where the spec wants it to fail."""
        await asyncio.sleep(spec.start_s)
        if spec.fails_at_start:
            raise ServingError("rehearsal.fails_at_start", "it fails, as it is told to", value=True)
        return Rehearsal(spec, model, max_model_len)

    async def answer(self, ask: Ask) -> AsyncGenerator[Item, None]:
        """The items of one answer, as wire.Engine has it."""
        compute = {
            "chat": self._generate,
            "completions": self._generate,
            "embeddings": self._embed,
        }.get(ask.route)
        if compute is None:
            yield refused_by_engine(400, f"A rehearsal answers no {ask.route} requests.", None)
            yield Usage()
            return
        prompts = _prompts(ask.tree)
        work = _Work(sum(_count(prompt) for prompt in prompts))
        finished = False
        try:
            if (refusal := self._refusal(ask, work)) is not None:
                yield refusal
            else:
                async with self._slot(work):
                    async for item in compute(ask, prompts, work):
                        yield item
            yield work.usage()
            finished = True
        finally:
            if not finished:
                self._cut_off[ask.request_id] = work.usage()

    @property
    def dead(self) -> bool:
        """It lives as long as its process."""
        return False

    async def probe(self) -> None:
        """Return once a token could come, which is at once."""

    async def add_adapter(self, name: str, folder: Path) -> None:
        """It answers every name alike."""

    async def remove_adapter(self, name: str) -> None:
        """It answers every name alike."""

    def stop(self) -> None:
        """Nothing of it is left behind."""

    def usage_of(self, request_id: str) -> Usage:
        """What an answer that was cut off has taken. Forgets it."""
        return self._cut_off.pop(request_id, Usage())

    def load(self) -> Load:
        """How busy it is now."""
        held = sum(work.prompt_tokens + work.completion_tokens for work in self._running)
        return Load(
            waiting=self._waiting,
            running=len(self._running),
            kv_use=min(1.0, held / self._spec.kv_cache_tokens),
            generated_tokens=self._generated_tokens,
        )

    @asynccontextmanager
    async def _slot(self, work: _Work) -> AsyncIterator[None]:
        """Wait for one, in the order of asking, and hold it."""
        self._waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self._waiting -= 1
        work.slot_s = work.last_s = time.monotonic()
        self._running.append(work)
        try:
            yield
        finally:
            self._running.remove(work)
            self._slots.release()

    def _refusal(self, ask: Ask, work: _Work) -> Refusal | None:
        embeds = "input" in ask.tree
        asked = work.prompt_tokens + (0 if embeds else self._length(ask.tree))
        if asked > self._max_model_len:
            message = (
                f"This model's maximum context length is {self._max_model_len} tokens; "
                f"prompt and answer together are {asked}."
            )
            return refused_by_engine(400, message, "input_tokens")
        # By the request's id: whoever asks again may fare better.
        fails = random.Random(ask.request_id).random() < self._spec.error_rate
        return engine_failed() if fails else None

    def _length(self, tree: Tree) -> int:
        """Tokens of an answer."""
        limit = _limit(tree)
        return self._spec.answer_tokens if limit is None else limit

    async def _generate(
        self, ask: Ask, prompts: list[Prompt], work: _Work
    ) -> AsyncGenerator[Item, None]:
        """The answer, a token of each choice at a time."""
        length, choices = self._length(ask.tree), int(ask.tree.get("n") or 1)
        answers = [
            oracle_tokens(prompt, length, choice) for prompt in prompts for choice in range(choices)
        ]
        sent = len(ask.emitted)
        if ask.repeat and tuple(answers[0][:sent]) != ask.emitted:
            # The one who was lost must have been another version.
            yield engine_failed()
            return
        speech = _Speech(ask, self._model, work.prompt_tokens, answers)
        first = 0 if ask.repeat else sent
        # A prompt that another replica has computed costs this one nothing (engine.split).
        computed = ask.tree.get(_PAGES) == _REHEARSED
        due_s = time.monotonic()
        for place in range(first, 0 if ask.ended else length):
            due_s += self._takes_s(first=place == first and not computed)
            # Where it is late, the next token makes up for it, as an engine's own clock would.
            await asyncio.sleep(due_s - time.monotonic())
            work.came(len(answers))
            self._generated_tokens += len(answers)
            if speech.streams and place >= sent:
                for piece in speech.pieces(place):
                    yield piece
        yield Piece(speech.end()) if speech.streams else WholeAnswer(speech.whole())

    def _takes_s(self, *, first: bool) -> float:
        taken_ms = self._spec.first_token_ms if first else self._spec.token_ms
        return taken_ms / 1000 * self._spec.slow_factor

    async def _embed(
        self, ask: Ask, texts: list[Prompt], work: _Work
    ) -> AsyncGenerator[Item, None]:
        await asyncio.sleep(self._takes_s(first=True))
        work.came(0)
        vectors = [embedding(text, self._spec.embedding_dims) for text in texts]
        as_text = ask.tree.get("encoding_format") == "base64"
        body = {
            "object": "list",
            "model": self._model,
            "data": [
                {
                    "object": "embedding",
                    "index": index,
                    "embedding": _base64(vector) if as_text else vector,
                }
                for index, vector in enumerate(vectors)
            ],
            "usage": {"prompt_tokens": work.prompt_tokens, "total_tokens": work.prompt_tokens},
        }
        yield WholeAnswer(json.dumps(body).encode())


class _Speech:
    """One answer in OpenAI's words."""

    def __init__(self, ask: Ask, model: str, prompt_tokens: int, answers: list[list[int]]) -> None:
        self._chat = ask.route == "chat"
        self._tree = ask.tree
        self._answers = answers
        self.streams = bool(ask.tree.get("stream"))
        kind = "chat.completion" if self._chat else "text_completion"
        self._head = {
            "id": f"{'chatcmpl' if self._chat else 'cmpl'}-{ask.request_id}",
            "object": f"{kind}.chunk" if self._chat and self.streams else kind,
            "created": int(time.time()),
            "model": model,
        }
        self._finish_reason = "stop" if _limit(ask.tree) is None else "length"
        completion_tokens = sum(len(tokens) for tokens in answers)
        self._usage = {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        }

    def pieces(self, place: int) -> Iterator[Piece]:
        """What the tokens at one place of every choice become in a stream."""
        for index, tokens in enumerate(self._answers):
            if self._chat and place == 0:
                yield Piece(self._event(index, {"delta": {"role": "assistant", "content": ""}}))
            last = place == len(tokens) - 1
            text = word(tokens[place])
            said: Tree = {"delta": {"content": text}} if self._chat else {"text": text}
            reason = self._finish_reason if last else None
            yield Piece(self._event(index, said, reason), (tokens[place],), ended=last)

    def end(self) -> bytes:
        """The end of a stream."""
        options = self._tree.get("stream_options") or {}
        if not options.get("include_usage"):
            return _DONE
        return event({**self._head, "choices": [], "usage": self._usage}).encode() + _DONE

    def whole(self) -> bytes:
        """An answer that doesn't stream."""
        choices = []
        for index, tokens in enumerate(self._answers):
            text = "".join(word(token) for token in tokens)
            message = {"message": {"role": "assistant", "content": text}}
            said: Tree = message if self._chat else {"text": text}
            choices.append(_choice(index, said, self._finish_reason))
        tree = {**self._head, "choices": choices, "usage": self._usage}
        if _PAGES in self._tree:
            tree[_PAGES] = _REHEARSED
        return json.dumps(tree).encode()

    def _event(self, index: int, said: Tree, reason: str | None = None) -> bytes:
        return event({**self._head, "choices": [_choice(index, said, reason)]}).encode()


def _choice(index: int, said: Tree, reason: str | None) -> Tree:
    return {"index": index, **said, "logprobs": None, "finish_reason": reason}


def _limit(tree: Tree) -> int | None:
    """The most tokens that a request allows its answer."""
    asked = tree.get("max_completion_tokens", tree.get("max_tokens"))
    return None if asked is None else int(asked)


def _prompts(tree: Tree) -> list[Prompt]:
    """A request's prompts, most often one."""
    if "messages" in tree:
        return [tree["messages"]]
    asked = tree["input"] if "input" in tree else tree["prompt"]
    several = isinstance(asked, list) and bool(asked) and not isinstance(asked[0], int)
    return asked if several else [asked]


def _count(prompt: Prompt) -> int:
    """Its tokens: words of a text, ids, and a token more for each turn of a chat."""
    if isinstance(prompt, str):
        return max(1, len(prompt.split()))
    turns = [one for one in prompt if isinstance(one, dict)]
    if not turns:
        return len(prompt)
    return sum(1 + len(_said(turn.get("content")).split()) for turn in turns)


def _said(content: object) -> str:
    """The text of a turn, which may come in parts."""
    if isinstance(content, list):
        return " ".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _base64(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()

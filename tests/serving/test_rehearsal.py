"""The engine that answers by rule: it is one, and what it says can be told beforehand."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import aclosing
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rayline.errors import ServingError
from rayline.serving.gateway.splitting import pages_in, prompt_alone, with_pages
from rayline.serving.rehearsal import Rehearsal, embedding, oracle, oracle_tokens, word
from rayline.serving.requests import Refusal
from rayline.serving.wire import Ask, Item, Piece, Usage, WholeAnswer
from rayline.spec import RehearsalSpec

FAST = {"first_token_ms": 0, "token_ms": 0}
TURNS = [{"role": "user", "content": "one two three"}]


def engine(**spec: Any) -> Rehearsal:
    return Rehearsal(RehearsalSpec(**{**FAST, **spec}), "bot", 1024)


def chat(number: int = 0, **more: Any) -> Ask:
    return Ask(f"request-{number}", "chat", {"model": "bot", "messages": TURNS, **more})


def completion(prompt: Any, **more: Any) -> Ask:
    return Ask("request", "completions", {"model": "bot", "prompt": prompt, **more})


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(coroutine)


async def items(rehearsal: Rehearsal, ask: Ask) -> list[Item]:
    return [item async for item in rehearsal.answer(ask)]


def answered(ask: Ask, **spec: Any) -> list[Item]:
    async def ask_it() -> list[Item]:
        return await items(engine(**spec), ask)

    return run(ask_it())


def events(found: list[Item]) -> list[dict[str, Any]]:
    """The events of a stream, which ends with [DONE]."""
    text = b"".join(item.text for item in found if isinstance(item, Piece)).decode()
    *data, end, nothing = text.split("\n\n")
    assert (end, nothing) == ("data: [DONE]", "")
    return [json.loads(one.removeprefix("data: ")) for one in data]


def said(found: list[Item]) -> str:
    deltas = [one["choices"][0]["delta"] for one in events(found) if one["choices"]]
    return "".join(delta.get("content") or "" for delta in deltas)


def whole(found: list[Item]) -> dict[str, Any]:
    (answer,) = [item for item in found if isinstance(item, WholeAnswer)]
    return json.loads(answer.json_text)


prompts = st.one_of(st.text(max_size=40), st.lists(st.integers(0, 999), min_size=1, max_size=9))


@given(prompts, st.integers(1, 40), st.integers(1, 40))
def test_a_longer_answer_begins_with_the_shorter_one(prompt, one, other):
    short, long = sorted([one, other])
    assert oracle(prompt, long).startswith(oracle(prompt, short))
    assert len(oracle(prompt, long).split()) == long


@given(st.text(max_size=20), st.text(max_size=20))
def test_another_prompt_has_another_answer(one, other):
    assert (oracle(one, 20) == oracle(other, 20)) == (one == other)


def test_a_stream_is_openais_and_says_what_the_oracle_says():
    found = answered(chat(max_tokens=5, stream=True, stream_options={"include_usage": True}))
    first, *tokens, usage = events(found)
    assert first["object"] == "chat.completion.chunk"
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert said(found) == oracle(TURNS, 5)
    assert [one["choices"][0]["finish_reason"] for one in tokens] == [None] * 4 + ["length"]
    assert usage["choices"] == []
    assert usage["usage"] == {"prompt_tokens": 4, "completion_tokens": 5, "total_tokens": 9}
    assert len({one["id"] for one in [first, *tokens, usage]}) == 1


def test_pieces_carry_the_ids_of_their_tokens():
    pieces = [item for item in answered(chat(max_tokens=5, stream=True)) if isinstance(item, Piece)]
    assert [token for piece in pieces for token in piece.tokens] == oracle_tokens(TURNS, 5)
    assert [piece.ended for piece in pieces if piece.tokens] == [False] * 4 + [True]


def test_a_whole_answer_says_what_the_stream_says():
    streamed = answered(chat(max_tokens=7, stream=True))
    answer = whole(answered(chat(max_tokens=7)))
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": said(streamed)}
    assert answer["usage"]["completion_tokens"] == 7


def test_completions_take_texts_ids_and_several_of_them():
    for prompt in ("a b", [1, 2, 3]):
        answer = whole(answered(completion(prompt, max_tokens=3)))
        assert answer["choices"][0]["text"] == oracle(prompt, 3)
    two = whole(answered(completion(["a", "b c"], max_tokens=3, n=2)))
    expected = [oracle(prompt, 3, choice) for prompt in ("a", "b c") for choice in (0, 1)]
    assert [choice["text"] for choice in two["choices"]] == expected
    assert two["usage"] == {"prompt_tokens": 3, "completion_tokens": 12, "total_tokens": 15}


def test_an_answer_without_a_limit_stops_by_itself():
    answer = whole(answered(completion("a"), answer_tokens=6))
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == 6


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(0, 12), st.booleans())
def test_a_stream_that_was_broken_goes_on_without_a_word_lost_or_doubled(length, cut, repeat):
    cut = min(cut, length)
    sent = oracle_tokens(TURNS, length)[:cut]
    tree = chat(max_tokens=length, stream=True).tree
    ask = Ask("request", "chat", tree, tuple(sent), repeat=repeat, ended=cut == length)
    found = answered(ask)
    assert "".join(map(word, sent)) + said(found) == oracle(TURNS, length)
    roles = [one["choices"][0]["delta"].get("role") for one in events(found) if one["choices"]]
    assert ("assistant" in roles) == (cut == 0)


def test_what_another_answer_began_is_not_repeated():
    ask = Ask("request", "chat", chat(max_tokens=9, stream=True).tree, (1, 2, 3), repeat=True)
    refusal, _ = answered(ask)
    assert isinstance(refusal, Refusal)
    assert refusal.status == 500


def test_usage_comes_last_and_is_what_was_generated():
    usage = answered(chat(max_tokens=5, stream=True))[-1]
    assert isinstance(usage, Usage)
    assert (usage.prompt_tokens, usage.completion_tokens) == (4, 5)


def test_too_long_a_prompt_is_refused_as_openai_refuses_it():
    refusal, usage = answered(completion("a b", max_tokens=1023))
    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.code) == (400, "context_length_exceeded")
    assert (usage.prompt_tokens, usage.completion_tokens) == (0, 0)


def test_embeddings_are_unit_vectors_in_both_forms():
    tree = {"model": "bot", "input": ["a b", "c"]}
    plain = whole(answered(Ask("request", "embeddings", tree), embedding_dims=8))
    assert [one["embedding"] for one in plain["data"]] == [embedding("a b", 8), embedding("c", 8)]
    assert sum(one * one for one in embedding("c", 8)) == pytest.approx(1)
    assert plain["usage"] == {"prompt_tokens": 3, "total_tokens": 3}
    tree["encoding_format"] = "base64"
    *_, usage = found = answered(Ask("request", "embeddings", tree), embedding_dims=8)
    raw = base64.b64decode(whole(found)["data"][1]["embedding"])
    assert list(struct.unpack("<8f", raw)) == pytest.approx(embedding("c", 8))
    assert (usage.prompt_tokens, usage.completion_tokens) == (3, 0)


def test_times_are_the_specs():
    async def measure() -> list[float]:
        began_s, at_s = time.monotonic(), []
        ask = chat(max_tokens=5, stream=True)
        async for item in engine(first_token_ms=100, token_ms=20, slow_factor=2).answer(ask):
            if isinstance(item, Piece) and item.tokens:
                at_s.append(time.monotonic() - began_s)
        return at_s

    first_s, *_, last_s = run(measure())
    assert 0.2 <= first_s < 0.3
    assert 0.36 <= last_s < 0.5


def test_those_above_the_slots_wait_in_the_order_of_asking():
    async def load() -> list[Any]:
        rehearsal = engine(slots=2, first_token_ms=20, kv_cache_tokens=100)
        tasks = [
            asyncio.create_task(items(rehearsal, chat(number, max_tokens=3))) for number in range(5)
        ]
        await asyncio.sleep(0.01)
        before = rehearsal.load()
        found = await asyncio.gather(*tasks)
        return [before, rehearsal.load(), [answer[-1].waited_ms for answer in found]]

    before, after, waited_ms = run(load())
    assert (before.running, before.waiting, before.kv_use) == (2, 3, 0.08)
    assert (after.running, after.waiting, after.kv_use) == (0, 0, 0)
    assert after.generated_tokens == 15
    assert max(waited_ms[:2]) < 10 < min(waited_ms[2:4]) <= max(waited_ms[2:4]) < waited_ms[4]
    assert waited_ms[4] >= 35


@pytest.mark.parametrize("closed", [False, True], ids=["cancelled", "closed"])
def test_an_answer_that_is_cut_off_ends_at_once_and_gives_its_slot_back(closed):
    async def cut() -> list[Any]:
        rehearsal = engine(slots=1, token_ms=5)
        seen: list[Item] = []

        async def read(answer: AsyncIterator[Item]) -> None:
            async for item in answer:
                seen.append(item)
                if closed and len(seen) == 3:
                    return

        answer = rehearsal.answer(chat(max_tokens=900, stream=True))
        async with aclosing(answer):
            task = asyncio.create_task(read(answer))
            await asyncio.sleep(0.03)
            task.cancel()
            await asyncio.wait({task})
        tokens = sum(len(item.tokens) for item in seen if isinstance(item, Piece))
        left = rehearsal.load()
        await asyncio.sleep(0.03)
        usage = rehearsal.usage_of("request-0")
        return [tokens, left, rehearsal.load(), usage, rehearsal.usage_of("request-0")]

    tokens, left, later, usage, forgotten = run(cut())
    assert left == later
    assert (left.running, left.waiting) == (0, 0)
    assert left.generated_tokens == usage.completion_tokens
    assert tokens <= usage.completion_tokens <= tokens + 1
    assert usage.prompt_tokens == 4
    assert forgotten == Usage()


def test_one_that_was_cut_off_while_it_waited_took_nothing():
    async def cut() -> list[Any]:
        rehearsal = engine(slots=1, token_ms=5)
        first, second = (
            asyncio.create_task(items(rehearsal, chat(number, max_tokens=4))) for number in (0, 1)
        )
        await asyncio.sleep(0.005)
        second.cancel()
        await asyncio.wait({second})
        found = await first
        return [found[-1], rehearsal.usage_of("request-1"), rehearsal.load()]

    served, taken, load = run(cut())
    assert served.completion_tokens == 4
    assert (taken.prompt_tokens, taken.completion_tokens) == (0, 0)
    assert (load.running, load.waiting) == (0, 0)


def test_so_many_fail_as_the_spec_says_and_the_same_ones_again():
    def failed() -> list[bool]:
        found = [answered(chat(number, max_tokens=1), error_rate=0.25) for number in range(400)]
        refusals = [answer[0] for answer in found if isinstance(answer[0], Refusal)]
        assert {refusal.status for refusal in refusals} == {500}
        return [isinstance(answer[0], Refusal) for answer in found]

    first = failed()
    assert 60 < sum(first) < 140
    assert failed() == first


def test_it_fails_at_its_start_where_it_is_told_to():
    with pytest.raises(ServingError, match="as it is told to"):
        run(Rehearsal.start(RehearsalSpec(fails_at_start=True), "bot", 1024))
    run(Rehearsal.start(RehearsalSpec(), "bot", 1024))


def test_a_prompt_that_another_rehearsal_computed_costs_nothing() -> None:
    (whole, _) = answered(prompt_alone(chat(max_completion_tokens=5)), first_token_ms=50)
    assert isinstance(whole, WholeAnswer)
    pages = pages_in(whole)
    assert pages is not None
    ask = with_pages(chat(max_tokens=3), pages)
    began_s = time.monotonic()
    (written, used) = answered(ask, first_token_ms=10_000)
    assert time.monotonic() - began_s < 5
    assert isinstance(written, WholeAnswer)
    said = json.loads(written.json_text)["choices"][0]["message"]["content"]
    assert said == oracle(TURNS, 3)
    assert isinstance(used, Usage)
    assert used.completion_tokens == 3

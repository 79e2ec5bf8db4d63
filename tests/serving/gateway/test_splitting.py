"""Prompts that another replica computes: who is asked what, and what a client gets where that does
not work. Real gateway, real sockets; scripted engines."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from rayline.serving.gateway.splitting import can_split, prompt_alone
from rayline.serving.wire import Ask
from support.house import House
from support.scripted_engine import ScriptedEngine, words

LONG = " ".join(f"w{number}" for number in range(12))
PAGES = {"pages_of": "prompts"}


@pytest.fixture
def house() -> Iterator[House]:
    house = House(split_from=8, hold_s=2)
    yield house
    house.close()


@pytest.fixture
def prompts(house: House) -> ScriptedEngine:
    return house.start("prompts", role="prefill")


@pytest.fixture
def answers(house: House) -> ScriptedEngine:
    return house.start("answers", role="decode")


def ask(house: House, prompt: str = LONG, **more: object) -> httpx.Response:
    body = {"model": "bot", "prompt": prompt, "max_tokens": 5, **more}
    return httpx.post(f"{house.url}/v1/completions", json=body, timeout=20)


def test_a_long_prompt_is_computed_by_one_replica_and_answered_by_another(house, prompts, answers):
    answer = ask(house, temperature=0, min_tokens=3)
    assert answer.json()["choices"][0]["text"] == " ".join(words(LONG, 5))
    (computed,), (written,) = prompts.asked, answers.asked
    assert (computed.tree["max_tokens"], written.tree["max_tokens"]) == (1, 5)
    assert "min_tokens" not in computed.tree
    assert written.tree["min_tokens"] == 3
    assert written.tree["kv_transfer_params"] == PAGES
    assert computed.request_id == written.request_id
    assert 'rayline_split_prompts_total{computed="elsewhere",model="bot"} 1.0' in metrics(house)
    # The engine's time is that of both: 1 and 2 ms a token.
    assert 'rayline_engine_seconds_sum{model="bot",version="1"} 0.006' in metrics(house)


def test_a_stream_is_split_alike(house, prompts, answers):
    text = ask(house, stream=True).text
    assert text.count("data: ") == 6
    assert "stream" not in prompts.asked[0].tree
    assert answers.asked[0].tree["stream"] is True


@pytest.mark.parametrize(
    "body",
    [{"prompt": "short"}, {"n": 2}, {"prompt": [LONG, LONG]}, {"echo": True}],
    ids=["short", "two choices", "two prompts", "echoed"],
)
def test_what_gains_nothing_is_not_split(house, prompts, answers, body):
    ask(house, **body)
    assert not prompts.asked
    assert "kv_transfer_params" not in answers.asked[0].tree


def test_who_answers_computes_the_prompt_where_the_other_is_lost(house, prompts, answers):
    prompts.dies_after = 0
    assert ask(house).json()["choices"][0]["text"] == " ".join(words(LONG, 5))
    assert "kv_transfer_params" not in answers.asked[0].tree
    assert 'rayline_split_prompts_total{computed="again",model="bot"} 1.0' in metrics(house)
    house.kill("prompts")
    while "prompts" in house.connections.names:
        pass
    assert ask(house).status_code == 200


def test_a_replica_that_computes_prompts_answers_nobody(house, prompts):
    assert httpx.get(f"{house.url}/health").status_code == 503
    assert ask(house).status_code == 503


def test_pages_of_one_version_are_not_given_to_another(house, prompts):
    second = house.start("second", version=2, role="decode")
    assert ask(house).status_code == 200
    assert "kv_transfer_params" not in second.asked[0].tree


def test_a_client_may_not_name_pages(house, prompts, answers):
    refused = ask(house, kv_transfer_params={"do_remote_prefill": True})
    assert refused.status_code == 400
    assert not prompts.asked
    assert not answers.asked


def test_what_is_asked_for_the_prompt_alone() -> None:
    tree = {"messages": [], "tools": [1], "stream": True, "max_completion_tokens": 9}
    alone = prompt_alone(Ask("r", "chat", tree)).tree
    assert alone.pop("kv_transfer_params")["do_remote_decode"] is True
    assert alone == {"messages": [], "tools": [1], "max_tokens": 1}
    assert not can_split("embeddings", {}, 1)


def metrics(house: House) -> str:
    return httpx.get(f"{house.url}/metrics").text

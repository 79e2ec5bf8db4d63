"""Replicas come, go and die under load: what the client gets is whole, or says that it is not.

Real gateway, real sockets; scripted engines, whose every answer is known beforehand."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import httpx
import pytest

from rayline.serving.gateway.survival import way_on
from support.house import House
from support.scripted_engine import ScriptedEngine, words

TOKENS = 30
HTTP = httpx.Client(timeout=30)
"""One for all: making one reads a machine's certificates each time."""


@pytest.fixture
def house() -> Iterator[House]:
    house = House(hold_s=10)
    yield house
    house.close()


def stream(house: House, prompt: str, **more: object) -> httpx.Response:
    body = {"model": "bot", "prompt": prompt, "max_tokens": TOKENS, "stream": True, **more}
    return HTTP.post(f"{house.url}/v1/completions", json=body)


def begun(pool: ThreadPoolExecutor, house: House, engine: ScriptedEngine) -> Future[httpx.Response]:
    """A stream of which the engine has made a token."""
    answer = pool.submit(stream, house, "a b")
    while not engine.generated:
        time.sleep(0.005)
    return answer


def said(text: str) -> list[str]:
    """The words of a stream that ended well."""
    events = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert events.pop() == "[DONE]", text[-300:]
    return [json.loads(event)["choices"][0]["text"].strip() for event in events]


def test_a_stream_goes_on_where_its_replica_died(house):
    dying = house.start("one", ScriptedEngine("one", token_s=0.01))
    dying.dies_after = 12
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(stream, house, "a b c d e", temperature=0)
        while dying.generated < 5:
            time.sleep(0.005)
        second = house.start("two", ScriptedEngine("two"))
        text = answer.result().text
    assert said(text) == words("a b c d e", TOKENS)
    (continued,) = second.asked
    assert continued.emitted == tuple(range(12))
    assert not continued.repeat


def test_a_stream_that_cannot_go_on_says_so_and_has_no_done(house):
    dying = house.start("one", ScriptedEngine("one", token_s=0.01))
    dying.dies_after = 5
    house.start("two")
    texts = [stream(house, "a b", presence_penalty=1).text for _ in range(2)]
    broken = next(text for text in texts if "error" in text)
    last = broken.rstrip().splitlines()[-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "unavailable"
    assert "[DONE]" not in broken


def test_what_has_not_begun_is_asked_elsewhere(house):
    dead = house.start("one")
    dead.dies_after = 0
    house.start("two")
    for number in range(20):
        prompt = f"w{number} x"
        body = {"model": "bot", "prompt": prompt, "max_tokens": 3}
        whole = HTTP.post(f"{house.url}/v1/completions", json=body)
        assert whole.json()["choices"][0]["text"] == " ".join(words(prompt, 3))
    assert dead.asked


def test_a_request_is_held_until_a_replica_comes(house):
    first = house.start("one")
    house.kill("one")
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(stream, house, "a b")
        time.sleep(0.3)
        assert not answer.done()
        house.start("two")
        assert said(answer.result().text) == words("a b", TOKENS)
    assert not first.asked


def test_a_replica_that_drains_finishes_and_takes_no_more(house):
    leaving = house.start("one", ScriptedEngine("one", token_s=0.02))
    with ThreadPoolExecutor() as pool:
        answer = begun(pool, house, leaving)
        house.start("two")
        drained = pool.submit(house.drain, "one")
        time.sleep(0.3)
        others = [stream(house, "c d").status_code for _ in range(5)]
        assert said(answer.result().text) == words("a b", TOKENS)
        assert drained.result()
    assert others == [200] * 5
    assert len(leaving.asked) == 1


def test_a_model_that_is_taken_away_ends_what_it_began_and_says_so_to_others(house):
    leaving = house.start("one", ScriptedEngine("one", token_s=0.05))
    with ThreadPoolExecutor() as pool:
        answer = begun(pool, house, leaving)
        house.taken_away = True
        while (healthy := HTTP.get(f"{house.url}/health")).status_code == 200:
            time.sleep(0.02)
        refused = stream(house, "c d")
        for one in (healthy, refused):
            assert (one.status_code, one.headers["Retry-After"]) == (503, "1")
        assert not answer.done()
        assert said(answer.result().text) == words("a b", TOKENS)


def test_a_gateway_that_is_about_to_stop_says_so_and_answers_on(house):
    house.start("one")
    assert HTTP.get(f"{house.url}/health").status_code == 200
    house.front.leaving = True
    assert HTTP.get(f"{house.url}/health").status_code == 503
    assert said(stream(house, "a b").text) == words("a b", TOKENS)


def test_over_the_bound_is_refused_at_once_with_a_time_to_come_back():
    house = House(max_ongoing=2, max_queued=3, hold_s=10)
    try:
        house.start("one", ScriptedEngine("one", token_s=0.02))
        began_s = time.monotonic()
        with ThreadPoolExecutor(20) as pool:
            answers = list(pool.map(lambda _: stream(house, "a b", max_tokens=50), range(20)))
        refused = [answer for answer in answers if answer.status_code == 429]
        assert len(refused) == 15
        assert all(int(answer.headers["Retry-After"]) >= 1 for answer in refused)
        assert all(answer.elapsed.total_seconds() < 1 for answer in refused)
        assert {answer.status_code for answer in answers} == {200, 429}
        assert time.monotonic() - began_s > 2
    finally:
        house.close()


def test_replicas_that_are_killed_under_load_lose_nothing(house):
    """2 to 3 replicas, one killed and one started every 0.15 s, 8 clients, 160 requests."""
    house.start("r0", ScriptedEngine("r0", token_s=0.002))
    house.start("r1", ScriptedEngine("r1", token_s=0.002))
    done = threading.Event()

    def churn() -> None:
        for number in range(2, 1000):
            if done.wait(0.15):
                return
            house.start(f"r{number}", ScriptedEngine(f"r{number}", token_s=0.002))
            house.kill(f"r{number - 2}")

    churning = threading.Thread(target=churn)
    churning.start()
    try:
        with ThreadPoolExecutor(8) as pool:
            prompts = [f"p{number} is asked" for number in range(160)]
            texts = list(pool.map(lambda prompt: stream(house, prompt).text, prompts))
    finally:
        done.set()
        churning.join()
    assert [said(text) for text in texts] == [words(prompt, TOKENS) for prompt in prompts]


@pytest.mark.parametrize(
    ("tree", "way"),
    [
        ({"temperature": 0}, "go on"),
        ({}, "go on"),
        ({"temperature": 0, "seed": 3}, "go on"),
        ({"temperature": 0.7, "seed": 3}, "begin again"),
        ({"temperature": 0, "presence_penalty": 1}, "begin again"),
        ({"temperature": 0, "logprobs": 3}, "begin again"),
        ({"temperature": 0, "response_format": {"type": "json_object"}}, "begin again"),
        ({"response_format": {"type": "json_object"}}, None),
        ({"presence_penalty": 1}, None),
        ({"temperature": 0, "n": 2}, None),
        ({"temperature": 0, "prompt": ["a", "b"]}, None),
        ({"temperature": 0, "prompt": [1, 2, 3]}, "go on"),
        ({"temperature": 0, "echo": True}, None),
    ],
)
def test_how_a_broken_stream_goes_on(tree, way):
    assert way_on("completions", tree) == way

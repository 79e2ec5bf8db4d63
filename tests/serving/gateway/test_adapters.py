"""Adapters at the gateway, over real sockets; the replicas' engines are scripted."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import httpx
import pytest

from support.house import House

HTTP = httpx.Client(timeout=30)


@pytest.fixture
def house() -> Iterator[House]:
    house = House()
    house.start("one")
    house.start("two")
    yield house
    house.close()


def ask(house: House, model: str, **more: object) -> httpx.Response:
    body = {"model": model, "prompt": "red green", "max_tokens": 2, **more}
    return HTTP.post(f"{house.url}/v1/completions", json=body)


def publish(house: House, *names: str) -> None:
    house.published = names
    until(lambda: all(one in house.connections.fleet.models for one in names))


def until(met: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 5
    while not met():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def test_only_replicas_that_have_an_adapter_are_asked_for_it(house):
    assert ask(house, "legal").json()["error"]["code"] == "model_not_found"
    house.loaded = {"two": ("legal",)}
    publish(house, "legal")
    answers = [ask(house, "legal", user=f"session {n}") for n in range(8)]
    assert [one.status_code for one in answers] == [200] * 8
    one, two = (house.replicas[name][3] for name in ("one", "two"))
    assert (len(one.asked), len(two.asked)) == (0, 8)
    # The engine tells them apart by the name.
    assert {asked.tree["model"] for asked in two.asked} == {"legal"}


def test_an_adapter_is_shown_among_the_models_with_its_own(house):
    house.loaded = {"one": ("legal",)}
    publish(house, "legal")
    cards = {one["id"]: one for one in HTTP.get(f"{house.url}/v1/models").json()["data"]}
    assert sorted(cards) == ["bot", "legal"]
    assert cards["legal"]["parent"] == "bot"
    assert "parent" not in cards["bot"]
    assert HTTP.get(f"{house.url}/v1/models/legal").json() == cards["legal"]


def test_a_request_waits_until_a_replica_has_loaded_it(house):
    publish(house, "legal")
    answers: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: answers.append(ask(house, "legal")))
    asking.start()
    # Whoever scales the model hears that it is one of its requests.
    until(lambda: any(one.held == {"bot": 1} for one in house.heard))
    assert answers == []
    house.loaded = {"one": ("legal",)}
    asking.join(timeout=5)
    assert answers[0].status_code == 200


def test_a_withdrawn_adapter_is_known_no_more_and_ends_what_it_began(house):
    house.loaded = dict.fromkeys(("one", "two"), ("legal",))
    publish(house, "legal")
    for name in ("one", "two"):
        house.replicas[name][3].token_s = 0.1
    body = {"model": "legal", "prompt": "red green", "max_tokens": 20, "stream": True}
    with HTTP.stream("POST", f"{house.url}/v1/completions", json=body) as stream:
        lines = stream.iter_lines()
        next(lines)
        house.published = ()
        house.loaded = {}
        until(lambda: "legal" not in house.connections.fleet.models)
        assert ask(house, "legal").status_code == 404
        assert list(lines)[-2:] == ["data: [DONE]", ""]
    assert ask(house, "bot", max_tokens=1).status_code == 200


def test_what_was_measured_counts_for_the_model_and_is_recorded_by_its_name(house):
    house.loaded = {"one": ("legal",)}
    publish(house, "legal")
    before = len(house.heard)
    ask(house, "legal")
    until(lambda: any(one.felt for one in house.heard[before:]))
    felt = [felt for one in house.heard[before:] for felt in one.felt]
    assert {one.model for one in felt} == {"bot"}
    assert 'model="legal"' in HTTP.get(f"{house.url}/metrics").text

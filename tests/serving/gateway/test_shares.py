"""Two versions behind a gateway: shares, sessions, a rollback under load, copies, what is measured.

Sockets and connections are real, engines scripted (support/house.py).
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator

import httpx
import pytest

from rayline.serving.rollout.choosing import Weights
from rayline.serving.rollout.measured import Measured
from support.house import House
from support.scripted_engine import ScriptedEngine


@pytest.fixture
def house() -> Iterator[House]:
    opened = House()
    try:
        yield opened
    finally:
        opened.close()


def split(house: House, percent: float, **more: float) -> None:
    house.weights = Weights(house.model, stable=1, canary=2, percent=percent, **more)


def settle(house: House) -> None:
    """Until the gateway has heard of it."""
    wanted = house.weights
    deadline_s = time.monotonic() + 5
    while house.connections.fleet.models[house.model].weights != wanted:
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


async def ask(client: httpx.AsyncClient, number: int = 0, **more: object) -> int:
    body = {"model": "bot", "prompt": f"word {number}", "max_tokens": 3, **more}
    response = await client.post("/v1/completions", json=body)
    return response.status_code


def ask_many(house: House, requests: int, at_once: int = 32, **more: object) -> Counter[int]:
    """The statuses of so many requests."""

    async def run() -> Counter[int]:
        limits = httpx.Limits(max_connections=at_once)
        async with httpx.AsyncClient(base_url=house.url, limits=limits, timeout=30) as client:
            return Counter(await asyncio.gather(*(ask(client, n, **more) for n in range(requests))))

    return asyncio.run(run())


def test_a_tenth_is_a_tenth_within_two_points_over_a_thousand_requests(house: House) -> None:
    stable, canary = house.start("a"), house.start("b", version=2)
    split(house, 10)
    settle(house)
    assert ask_many(house, 1000) == {200: 1000}
    assert len(stable.asked) + len(canary.asked) == 1000
    assert abs(len(canary.asked) / 10 - 10) <= 2


def test_a_session_stays_with_its_version(house: House) -> None:
    stable, canary = house.start("a"), house.start("b", version=2)
    split(house, 50)
    settle(house)
    for _ in range(5):
        assert asyncio.run(_ask_as(house, [f"user-{n}" for n in range(20)])) == {200}
    by_user = {
        name: {ask.tree["user"] for ask in engine.asked}
        for name, engine in (("stable", stable), ("canary", canary))
    }
    assert by_user["stable"].isdisjoint(by_user["canary"])
    assert by_user["canary"]


async def _ask_as(house: House, users: list[str]) -> set[int]:
    async with httpx.AsyncClient(base_url=house.url) as client:
        return set(await asyncio.gather(*(ask(client, user=user) for user in users)))


def test_a_rollback_under_load_fails_nothing_and_holds_within_two_seconds(house: House) -> None:
    house.start("a")
    canary = house.start("b", version=2)
    split(house, 50)
    settle(house)
    statuses: Counter[int] = Counter()
    rolled_back_s = last_s = 0.0

    async def run() -> None:
        nonlocal rolled_back_s, last_s
        async with httpx.AsyncClient(base_url=house.url, timeout=30) as client:
            began_s = time.monotonic()
            while (now_s := time.monotonic()) < began_s + 5:
                if not rolled_back_s and now_s > began_s + 2:
                    house.weights = Weights(house.model, stable=1)
                    rolled_back_s = now_s
                before = len(canary.asked)
                statuses.update(await asyncio.gather(*(ask(client) for _ in range(8))))
                if len(canary.asked) > before:
                    last_s = time.monotonic()

    asyncio.run(run())
    assert set(statuses) == {200}
    assert canary.asked
    assert last_s - rolled_back_s < 2


def test_a_version_without_a_replica_is_answered_for(house: House) -> None:
    house.start("a")
    house.start("b", version=2)
    split(house, 100)
    settle(house)
    house.kill("b")
    assert ask_many(house, 20) == {200: 20}


def test_copies_go_to_the_version_that_has_no_share(house: House) -> None:
    stable, shadow = house.start("a"), house.start("b", version=2)
    split(house, 0, shadow_percent=50)
    settle(house)
    assert ask_many(house, 200) == {200: 200}
    assert len(stable.asked) == 200
    assert abs(len(shadow.asked) - 100) <= 2
    assert {one.request_id for one in stable.asked}.isdisjoint(
        one.request_id for one in shadow.asked
    )
    assert measured(house, 2, requests=len(shadow.asked)).errors == 0


def measured(house: House, version: int, requests: int) -> Measured:
    """All that the gateway said of a version, once that is so many requests."""
    deadline_s = time.monotonic() + 5
    while True:
        felt = [one for report in house.heard for one in report.felt if one.version == version]
        total = sum((one.measured for one in felt), Measured())
        if total.requests >= requests:
            return total
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def test_what_is_measured_is_what_clients_felt(house: House) -> None:
    house.start("a", ScriptedEngine("a", token_s=0.02))
    settle_on_one(house)
    assert ask_many(house, 4, stream=True, max_tokens=6) == {200: 4}
    found = measured(house, 1, requests=4)
    assert (found.requests, found.errors) == (4, 0)
    assert found.ttft_ms.count == found.tpot_ms.count == 4
    assert 18 < (found.ttft_ms.percentile(50) or 0) < 200
    assert 18 < (found.tpot_ms.percentile(50) or 0) < 60


def settle_on_one(house: House) -> None:
    house.weights = Weights(house.model, stable=1)
    deadline_s = time.monotonic() + 5
    while house.model not in house.connections.fleet.models:
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


def test_errors_are_counted_and_what_clients_got_wrong_is_not(house: House) -> None:
    house.start("a")
    settle_on_one(house)
    for prompt, status in [("refuse", 400), ("fail", 500), ("nothing", 500), ("good", 200)]:
        body = {"model": "bot", "prompt": prompt}
        assert httpx.post(f"{house.url}/v1/completions", json=body).status_code == status
    found = measured(house, 1, requests=3)
    assert (found.requests, found.errors) == (3, 2)


def test_what_is_owed_a_first_token_is_told_with_its_age(house: House) -> None:
    house.start("a", ScriptedEngine("a", token_s=3))
    settle_on_one(house)
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            f"{house.url}/v1/completions",
            json={"model": "bot", "prompt": "slow", "stream": True},
            timeout=1.6,
        )
    ages = [age for report in house.heard for one in report.felt for age in one.unanswered_ms]
    assert max(ages) > 900
    time.sleep(1)
    # The client has gone: nobody waits any more, and it is nobody's error.
    assert all(not one.unanswered_ms for one in house.heard[-1].felt)
    assert sum(one.measured.requests for report in house.heard for one in report.felt) == 0

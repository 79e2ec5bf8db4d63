"""The door as a gateway uses it: let in, turned away, settled, written down; over a real store."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest

from rayline.serving.access.door import Door, Pass, Usage, allowances_of, spool_folder
from rayline.serving.access.key_store import open_keys
from rayline.serving.access.keys import ANONYMOUS, new_secret
from rayline.serving.access.quota import lease_from
from rayline.serving.access.refusals import TurnedAway
from rayline.serving.access.store import Store
from rayline.serving.access.usage import UsageSum, sum_usage
from rayline.spec import GatewaySpec, KeySpec, Limits, UsageQuery


@contextlib.asynccontextmanager
async def doors(spec: GatewaySpec, count: int = 1) -> AsyncIterator[list[Door]]:
    """Several gateways' doors over one authority, each with its background work."""
    lease = lease_from(allowances_of(spec))
    opened = [Door.open(spec, gateway=f"gateway-{n}", lease=lease) for n in range(count)]
    running = [asyncio.create_task(door.run()) for door in opened]
    try:
        yield opened
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        for door in opened:
            await door.close()


async def let_in(
    door: Door, secret: str | None, tokens: int = 10, scope: str = "inference"
) -> Pass:
    return await door.enter(secret, "10.0.0.1", scope, "tiny", tokens)  # type: ignore[arg-type]


async def turned_away(door: Door, secret: str | None, address: str = "10.0.0.1") -> TurnedAway:
    with pytest.raises(TurnedAway) as caught:
        await door.enter(secret, address, "inference", "tiny", 10)
    return caught.value


def usage(request_id: str, **more: object) -> Usage:
    given = {"model": "tiny", "route": "chat", "status": 200, "outcome": "complete"} | more
    return Usage(request_id, **given)  # type: ignore[arg-type]


def sums(spec: GatewaySpec) -> dict[str, UsageSum]:
    return {one.name: one for one in sum_usage(Store(spec.store), UsageQuery(by="key"))}


def test_a_request_from_its_key_to_its_row(address: str, tmp_path: Path) -> None:
    spec = GatewaySpec(store=address, spool=str(tmp_path / "spool"))
    issued = open_keys(address).create(
        KeySpec(name="one", team="t", limits=Limits(requests_per_min=5, tokens_per_min=100))
    )

    async def ask() -> None:
        async with doors(spec) as (door,):
            pass_ = await let_in(door, issued.secret, tokens=60)
            assert pass_.key.name == "one"
            assert pass_.headers["x-ratelimit-remaining-tokens"] == "40"
            used = usage("r1", prompt_tokens=5, completion_tokens=15, cached_tokens=2, ttft_ms=3.0)
            door.leave(pass_, used)
            door.leave(pass_, used)
            again = await let_in(door, issued.secret, tokens=80)
            door.leave(again, usage("r2", status=499, outcome="cut", prompt_tokens=5))
            with pytest.raises(TurnedAway) as denied:
                await let_in(door, issued.secret, tokens=99)
            assert denied.value.refusal.status == 429
            assert denied.value.headers["x-ratelimit-limit-tokens"] == "100"
            # The list of models costs nothing.
            assert (await let_in(door, issued.secret, scope="models")).headers == {}

    asyncio.run(ask())
    found = sums(spec)["one"]
    assert (found.requests, found.complete, found.cut) == (2, 1, 1)
    assert (found.prompt_tokens, found.completion_tokens, found.cached_tokens) == (10, 15, 2)


def test_who_has_no_key_or_a_wrong_one(tmp_path: Path) -> None:
    spec = GatewaySpec(store=f"sqlite:///{tmp_path}/serving.db", keys="required")

    async def ask() -> None:
        async with doors(spec) as (door,):
            for nothing in (None, ""):
                wrong = (await turned_away(door, nothing)).refusal
                assert (wrong.status, wrong.code) == (401, "invalid_api_key")
                assert "You didn't provide an API key" in wrong.message
            for number in range(20):
                wrong = (await turned_away(door, f"rl-{number}")).refusal
                assert (wrong.status, wrong.code) == (401, "invalid_api_key")
            wrong = (await turned_away(door, "rl-more")).refusal
            assert (wrong.status, wrong.code) == (429, "rate_limit_exceeded")
            assert wrong.retry_after_s in range(1, 62)
            assert (await turned_away(door, "rl-x", "10.0.0.2")).refusal.status == 401
            for strange in ("\udcff\ud800", "x" * 10**6, "\0", "rl-é"):
                assert (await turned_away(door, strange, "10.0.0.3")).refusal.status == 401

    asyncio.run(ask())


def test_a_look_at_the_key_comes_before_the_body(tmp_path: Path) -> None:
    spec = GatewaySpec(store=f"sqlite:///{tmp_path}/serving.db", keys="required")
    issued = open_keys(spec.store).create(KeySpec(name="one", scopes=("models",)))

    async def ask() -> None:
        async with doors(spec) as (door,):
            await door.look(issued.secret, "10.0.0.1", "models")
            for secret, status in ((issued.secret, 403), (None, 401), ("rl-x", 401)):
                with pytest.raises(TurnedAway) as caught:
                    await door.look(secret, "10.0.0.1", "inference")
                assert caught.value.refusal.status == status

    asyncio.run(ask())


def test_a_key_that_was_made_a_moment_ago_is_known(address: str, tmp_path: Path) -> None:
    spec = GatewaySpec(store=address, spool=str(tmp_path / "spool"), keys="required")
    keys = open_keys(address)

    async def ask() -> None:
        async with doors(spec, 2) as gateways:
            for number in range(20):
                secret = keys.create(KeySpec(name=f"one {number}")).secret
                for door in gateways:
                    both = await asyncio.gather(let_in(door, secret), let_in(door, secret))
                    assert {one.key.name for one in both} == {f"one {number}"}

    asyncio.run(ask())


def test_a_good_key_passes_where_others_of_its_address_try_wrong_ones(tmp_path: Path) -> None:
    spec = GatewaySpec(store=f"sqlite:///{tmp_path}/serving.db")
    issued = open_keys(spec.store).create(KeySpec(name="one"))

    async def ask() -> None:
        async with doors(spec) as (door,):
            for _ in range(30):
                await turned_away(door, new_secret())
            await let_in(door, issued.secret)

    asyncio.run(ask())


def test_open_until_a_key_is_made_where_nobody_else_can_ask(tmp_path: Path) -> None:
    spec = GatewaySpec(store=f"sqlite:///{tmp_path}/serving.db")

    async def ask() -> None:
        async with doors(spec) as (door,):
            assert door.open_to_all
            pass_ = await let_in(door, "none", tokens=10**9)
            assert pass_.key is ANONYMOUS
            door.leave(pass_, usage("r1", prompt_tokens=7))
            issued = open_keys(spec.store).create(KeySpec(name="one"))
            await until(partial(refused, door, None))
            assert (await let_in(door, issued.secret)).key.name == "one"
            open_keys(spec.store).revoke("one")
            await asyncio.sleep(1)
            assert not door.open_to_all
            assert "revoked" in (await turned_away(door, issued.secret)).refusal.message

    asyncio.run(ask())
    assert sums(spec)["anonymous"].prompt_tokens == 7


async def until(done: Callable[[], Awaitable[bool]]) -> None:
    deadline_s = time.monotonic() + 30
    while not await done():
        assert time.monotonic() < deadline_s
        await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("host", "keys", "open_to_all"),
    [
        ("127.0.0.1", "auto", True),
        ("localhost", "auto", True),
        ("::1", "auto", True),
        ("0.0.0.0", "auto", False),
        ("gateway.example", "auto", False),
        ("0.0.0.0", "open", True),
        ("127.0.0.1", "required", False),
    ],
)
def test_where_no_key_is_needed(tmp_path: Path, host: str, keys: str, open_to_all: bool) -> None:
    spec = GatewaySpec.parse(
        {"store": f"sqlite:///{tmp_path}/serving.db", "host": host, "keys": keys}
    )

    async def ask() -> None:
        async with doors(spec) as (door,):
            assert door.open_to_all is open_to_all

    asyncio.run(ask())


def test_a_revoked_key_is_refused_by_every_gateway_within_a_second(tmp_path: Path) -> None:
    """The median of three, so that one stall of the machine is no failure."""
    spec = GatewaySpec(store=f"sqlite:///{tmp_path}/serving.db")
    keys = open_keys(spec.store)

    async def ask() -> list[float]:
        took_s = []
        made = [keys.create(KeySpec(name=f"key {n}")) for n in range(3)]
        async with doors(spec, 4) as opened:
            for issued in made:
                keys.revoke(issued.key.id)
                began_s = time.monotonic()
                for door in opened:
                    await until(partial(refused, door, issued.secret))
                took_s.append(time.monotonic() - began_s)
        return took_s

    assert statistics.median(asyncio.run(ask())) < 1.0


async def refused(door: Door, secret: str | None) -> bool:
    try:
        await let_in(door, secret)
    except TurnedAway:
        return True
    return False


def test_four_gateways_hold_one_limit(tmp_path: Path) -> None:
    spec = GatewaySpec(store=f"sqlite:///{tmp_path}/serving.db")
    secret = (
        open_keys(spec.store)
        .create(KeySpec(name="one", limits=Limits(requests_per_min=400)))
        .secret
    )

    async def ask() -> int:
        async with doors(spec, 4) as opened:
            admitted = 0
            deadline_s = time.monotonic() + 20
            while admitted < 380 and time.monotonic() < deadline_s:
                for door in opened:
                    admitted += not await refused(door, secret)
            for door in opened * 50:
                admitted += not await refused(door, secret)
            return admitted

    assert 380 <= asyncio.run(ask()) <= 420


def test_a_gateway_that_starts_anew_knows_the_budget_that_is_spent(tmp_path: Path) -> None:
    spec = GatewaySpec(store=f"sqlite:///{tmp_path}/serving.db")
    secret = (
        open_keys(spec.store).create(KeySpec(name="one", limits=Limits(budget_tokens=100))).secret
    )

    async def ask(request_id: str) -> None:
        async with doors(spec) as (door,):
            pass_ = await let_in(door, secret, tokens=60)
            door.leave(pass_, usage(request_id, prompt_tokens=30, completion_tokens=30))

    asyncio.run(ask("r1"))
    with pytest.raises(TurnedAway) as caught:
        asyncio.run(ask("r2"))
    assert caught.value.refusal.code == "insufficient_quota"


def test_one_gateway_alone_is_its_own_authority(tmp_path: Path) -> None:
    spec = GatewaySpec(store=f"sqlite:///{tmp_path}/serving.db")
    secret = (
        open_keys(spec.store).create(KeySpec(name="one", limits=Limits(requests_per_min=2))).secret
    )

    async def ask() -> None:
        door = Door.open(spec, gateway="alone")
        await let_in(door, secret)
        await let_in(door, secret)
        assert (await turned_away(door, secret)).refusal.status == 429
        await door.close()

    asyncio.run(ask())


def test_where_rows_wait(tmp_path: Path) -> None:
    local = GatewaySpec(store=f"sqlite:///{tmp_path}/serving.db")
    assert spool_folder(local, Store(local.store)) == tmp_path / "serving.db.spool"
    remote = GatewaySpec(store="postgresql://host/name")
    assert spool_folder(remote, Store(remote.store)) == Path.home() / ".rayline" / "spool"
    chosen = GatewaySpec(spool="elsewhere")
    assert spool_folder(chosen, Store(chosen.store)) == Path("elsewhere")


def test_the_door_is_light() -> None:
    script = (
        "import sys, rayline.serving.access.door, rayline.serving.access.fair_queue; "
        "print([name for name in ('ray', 'torch', 'vllm', 'mlflow') if name in sys.modules])"
    )
    shown = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert shown.stdout.strip() == "[]"

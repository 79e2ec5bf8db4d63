"""Versions on a real Ray and a real Serve, with rehearsals for engines (they answer by rule,
without a model; everything around them is real). One cluster for the whole module, in this
order."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest
import ray
from ray import serve

from rayline.errors import ServingError
from rayline.serving import (
    ModelStatus,
    canary,
    deploy,
    promote,
    roll_back,
    served_names,
    status,
    undeploy,
)
from rayline.serving.director.applications import states
from rayline.spec import ServeSpec

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

TURNS = [{"role": "user", "content": "what is the capital of France"}]


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> ServeSpec:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return ServeSpec.parse(
        {
            "name": "bot",
            # Named and not opened.
            "model": {"directory": "no/such/model"},
            "device": "cpu",
            "gateway": {
                "port": port,
                "store": f"sqlite:///{tmp_path_factory.mktemp('serving')}/serving.db",
            },
            "scale": {"min_replicas": 1, "max_replicas": 3, "downscale_delay_s": 600},
            "rollout": {"window_s": 5, "min_requests": 30},
            "cpus_per_replica": 0.2,
            "drain_s": 20,
            "rehearsal": {"first_token_ms": 10, "token_ms": 2, "answer_tokens": 8},
        }
    )


@pytest.fixture(scope="module", autouse=True)
def cluster(spec: ServeSpec) -> Iterator[None]:
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    try:
        deploy(spec)
        yield
    finally:
        serve.shutdown()
        ray.shutdown()


class Load:
    """Clients that ask one question after another, every second one for a stream, and check what
    comes."""

    def __init__(self, spec: ServeSpec, clients: int = 8) -> None:
        self._base_url = f"http://127.0.0.1:{spec.gateway.port}"
        self._clients = clients
        self.outcomes: Counter[str] = Counter()
        self._over = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def failures(self) -> dict[str, int]:
        return {outcome: n for outcome, n in self.outcomes.items() if outcome != "ok"}

    async def _run(self) -> None:
        async with httpx.AsyncClient(base_url=self._base_url, timeout=60) as client:
            await asyncio.gather(*(self._ask(client, n % 2 == 0) for n in range(self._clients)))

    async def _ask(self, client: httpx.AsyncClient, stream: bool) -> None:
        body = {"model": "bot", "messages": TURNS, "stream": stream}
        while not self._over.is_set():
            try:
                answer = await client.post("/v1/chat/completions", json=body)
            except httpx.HTTPError as wrong:
                self.outcomes[type(wrong).__name__] += 1
                continue
            whole = not stream or answer.text.rstrip().endswith("data: [DONE]")
            outcome = "ok" if answer.is_success and whole else f"{answer.status_code}"
            self.outcomes[outcome] += 1


def until(met: Callable[[ModelStatus], bool], timeout_s: float = 60) -> ModelStatus:
    deadline_s = time.monotonic() + timeout_s
    while not met(found := status("bot")):
        assert time.monotonic() < deadline_s, found
        time.sleep(0.2)
    return found


def stable_is(number: int) -> Callable[[ModelStatus], bool]:
    return lambda found: found.stable == number and found.canary is None


def test_a_version_takes_over_under_load_and_nothing_fails(spec: ServeSpec) -> None:
    with Load(spec) as load:
        time.sleep(1)
        version = deploy(spec.changed({"rehearsal.token_ms": 1})).version
        time.sleep(5)
    assert version == 2
    assert served_names() == ["bot"]
    assert load.failures == {}
    assert load.outcomes["ok"] > 100
    found = until(lambda found: found.version(1).state == "stopped")
    assert found.stable == 2
    deadline_s = time.monotonic() + 30
    while list(states()) != ["bot--v2"]:
        assert time.monotonic() < deadline_s, states()
        time.sleep(0.2)


def test_equal_replicas_are_not_replaced_and_their_scale_changes(spec: ServeSpec) -> None:
    version, deadline_s = status("bot").stable, time.monotonic() + 60
    # Those of the version before are taken away meanwhile.
    while len(before := replica_processes()) != 1:
        assert time.monotonic() < deadline_s, before
        time.sleep(0.2)
    changed = spec.changed({"rehearsal.token_ms": 1, "scale.min_replicas": 2})
    assert deploy(changed).version == version
    until(lambda found: found.up == 2)
    assert set(before) < set(replica_processes())


def replica_processes() -> list[int]:
    below = psutil.Process(os.getpid()).children(recursive=True)
    return [one.pid for one in below if "ServeReplica:bot" in " ".join(one.cmdline())]


def test_a_version_that_does_not_start_changes_nothing_and_says_so(spec: ServeSpec) -> None:
    before = status("bot").stable
    with Load(spec) as load:
        with pytest.raises(ServingError, match="as it is told to"):
            deploy(spec.changed({"rehearsal.fails_at_start": True}))
        time.sleep(1)
    assert load.failures == {}
    found = status("bot")
    assert (found.stable, found.canary) == (before, None)
    newest = found.versions[0]
    assert newest.state == "failed"
    assert "as it is told to" in newest.reason
    assert f"version {before} goes on serving" in found.events[-1].said


@pytest.mark.engines
def test_a_canary_gets_its_share_is_raised_promoted_and_rolled_back(spec: ServeSpec) -> None:
    before = status("bot").stable
    assert before is not None
    with Load(spec) as load:
        new = deploy(spec.changed({"rehearsal.token_ms": 3, "rollout.steps": [10]})).version
        found = until(lambda found: felt(found, new) >= 30)
        assert (found.stable, found.canary) == (before, new)
        share = felt(found, new) / (felt(found, new) + felt(found, before))
        assert abs(share - 0.1) < 0.03
        canary("bot", 50)
        until(lambda found: found.version(new).percent == 50)
        promote("bot")
        until(stable_is(new))
        began_s = time.monotonic()
        # What it replaced still drains, so it has everything at once.
        roll_back("bot")
        assert status("bot").stable == before
        assert time.monotonic() - began_s < 2
        time.sleep(1)
    assert load.failures == {}
    until(lambda found: found.version(new).state == "stopped")


def felt(found: ModelStatus, number: int) -> int:
    version = found.version(number)
    return 0 if version.felt is None else version.felt.requests


def test_any_earlier_version_comes_back_by_one_command(spec: ServeSpec) -> None:
    before = status("bot").stable
    with Load(spec) as load:
        roll_back("bot", to=1)
        found = status("bot")
        assert (found.stable, found.version(1).state) == (before, "starting")
        until(stable_is(1))
        time.sleep(1)
    assert load.failures == {}


def test_a_slow_canary_is_rolled_back_by_itself(spec: ServeSpec) -> None:
    slow = {"rehearsal.token_ms": 2, "rehearsal.slow_factor": 3, "rollout.steps": [25, 100]}
    with Load(spec) as load:
        version = deploy(spec.changed(slow)).version
        found = until(lambda found: found.canary is None)
        time.sleep(1)
    assert load.failures == {}
    assert found.stable != version
    reason = found.version(version).reason
    assert reason.startswith("rolled back: t")
    assert "times the stable version's" in reason


@pytest.mark.engines
def test_a_good_canary_arrives_by_itself(spec: ServeSpec) -> None:
    good = {"rehearsal.token_ms": 2.1, "rollout.steps": [25, 100]}
    with Load(spec) as load:
        version = deploy(spec.changed(good)).version
        found = until(stable_is(version))
    assert load.failures == {}
    said = [event.said for event in found.events]
    assert f"version {version} gets 25 % of the requests" in said
    assert f"version {version} gets 100 % of the requests" in said


@pytest.mark.engines
def test_load_brings_replicas(spec: ServeSpec) -> None:
    busy = {
        "rehearsal.token_ms": 2.1,
        "scale.target_ongoing_requests": 2,
        "scale.upscale_delay_s": 2,
        "scale.downscale_delay_s": 3,
    }
    deploy(spec.changed(busy))
    with Load(spec, clients=6) as load:
        began_s = time.monotonic()
        grown = until(lambda found: found.up == 3)
        took_s = time.monotonic() - began_s
    decision = grown.versions[0].decision
    assert decision is not None
    assert decision.signal == "requests per replica"
    assert load.failures == {}
    # Two replicas start, on a machine of two cores, beside the load.
    assert took_s < 90
    until(lambda found: found.up == 1)


def test_to_zero_and_back_with_the_first_request_held_and_answered(spec: ServeSpec) -> None:
    idle = {
        "rehearsal.token_ms": 2.1,
        "scale.min_replicas": 0,
        "scale.idle_s": 3,
        "scale.downscale_delay_s": 1,
    }
    deploy(spec.changed(idle))
    found = until(lambda found: found.up == 0)
    decision = found.versions[0].decision
    assert decision is not None
    assert decision.target == 0
    url = f"http://127.0.0.1:{spec.gateway.port}/v1/chat/completions"
    began_s = time.monotonic()
    answer = httpx.post(url, json={"model": "bot", "messages": TURNS}, timeout=60)
    assert answer.status_code == 200
    assert time.monotonic() - began_s < 30


def test_a_director_that_is_killed_comes_back_and_goes_on(spec: ServeSpec) -> None:
    deploy(spec.changed({"rehearsal.token_ms": 2.1}))
    before = status("bot")
    below = psutil.Process(os.getpid()).children(recursive=True)
    (director,) = (
        one for one in below if "ServeReplica:rayline:director" in " ".join(one.cmdline())
    )
    with Load(spec) as load:
        os.kill(director.pid, signal.SIGKILL)
        time.sleep(10)
    assert load.failures == {}
    after = until(lambda found: found.up == before.up)
    assert after.stable == before.stable
    assert [one.number for one in after.versions] == [one.number for one in before.versions]
    assert deploy(spec.changed({"rehearsal.token_ms": 2.2})).version > before.versions[0].number


def test_what_is_taken_away_is_gone(tmp_path: Path) -> None:
    undeploy("bot")
    assert not serve.status().applications
    assert replica_processes() == []

"""Adapters published and withdrawn on a real Ray and a real Serve, with rehearsals for engines:
tests/serving/models holds what vLLM makes of them. One deployment for the module, in this order."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator

import httpx
import psutil
import pytest
import ray
from ray import serve

from rayline.errors import ServingError, SpecError
from rayline.serving import deploy, publish, status, withdraw
from rayline.serving.director.status import AdapterStatus
from rayline.spec import AdapterSpec, ServeSpec

pytestmark = [pytest.mark.engines, pytest.mark.timeout(240)]

TURNS = [{"role": "user", "content": "what is the capital of France"}]


def adapter(name: str) -> AdapterSpec:
    # Named and not opened, as the model of a rehearsal is.
    return AdapterSpec.parse({"name": name, "source": {"directory": f"/adapters/{name}"}})


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> ServeSpec:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return ServeSpec.parse(
        {
            "name": "bot",
            "model": {"directory": "no/such/model"},
            "device": "cpu",
            "gateway": {
                "port": port,
                "store": f"sqlite:///{tmp_path_factory.mktemp('serving')}/serving.db",
            },
            "engine": {"max_adapters": 2},
            "scale": {"min_replicas": 2, "max_replicas": 2},
            "cpus_per_replica": 0.2,
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


@pytest.fixture
def asked(spec: ServeSpec) -> Iterator[Counter[int]]:
    """One client that asks for the model itself all the while, and what it got."""
    outcomes: Counter[int] = Counter()
    over = threading.Event()

    def keep_asking() -> None:
        while not over.is_set():
            outcomes[ask(spec, "bot").status_code] += 1

    asking = threading.Thread(target=keep_asking)
    asking.start()
    yield outcomes
    over.set()
    asking.join()


def ask(spec: ServeSpec, model: str) -> httpx.Response:
    url = f"http://127.0.0.1:{spec.gateway.port}/v1/chat/completions"
    return httpx.post(url, json={"model": model, "messages": TURNS}, timeout=60)


def models(spec: ServeSpec) -> list[str]:
    found = httpx.get(f"http://127.0.0.1:{spec.gateway.port}/v1/models", timeout=60).json()
    return [card["id"] for card in found["data"]]


def adapters() -> tuple[AdapterStatus, ...]:
    (version,) = status("bot").versions
    return version.adapters


def test_a_published_adapter_is_answered_with_at_once_and_by_every_replica(spec, asked):
    publish("bot", adapter("legal"))
    assert ask(spec, "legal").status_code == 200
    assert models(spec) == ["bot", "legal"]
    assert adapters() == (AdapterStatus("legal", "directory:/adapters/legal", 2, ""),)
    assert set(asked) == {200}


def test_what_has_no_place_or_another_name_is_refused(spec):
    with pytest.raises(SpecError, match="is the deployment's own"):
        publish("bot", adapter("bot"))
    publish("bot", adapter("medical"))
    with pytest.raises(SpecError, match="every place is taken: legal, medical"):
        publish("bot", adapter("art"))
    with pytest.raises(SpecError, match="no adapter of that name"):
        withdraw("bot", "art")
    with pytest.raises(ServingError, match="no such deployment"):
        publish("other", adapter("art"))
    assert models(spec) == ["bot", "legal", "medical"]


def test_a_replica_that_comes_later_has_them_too():
    below = psutil.Process(os.getpid()).children(recursive=True)
    one, *_ = (each.pid for each in below if "ServeReplica:bot" in " ".join(each.cmdline()))
    os.kill(one, signal.SIGKILL)
    deadline_s = time.monotonic() + 90
    # The killed one is remembered for some seconds.
    time.sleep(6)
    while [each.up for each in adapters()] != [2, 2]:
        assert time.monotonic() < deadline_s, adapters()
        time.sleep(0.5)


def test_a_withdrawn_one_is_unknown_within_a_second(spec, asked):
    withdraw("bot", "medical")
    time.sleep(1)
    assert ask(spec, "medical").status_code == 404
    assert ask(spec, "legal").status_code == 200
    assert set(asked) == {200}


def test_deploying_another_list_changes_it_in_place(spec, asked):
    listed = [adapter("art").model_dump(mode="json")]
    endpoint = deploy(spec.changed({"engine.adapters": listed}))
    assert endpoint.version == 1
    assert ask(spec, "art").status_code == 200
    assert ask(spec, "legal").status_code == 404
    assert [each.name for each in adapters()] == ["art"]
    assert set(asked) == {200}
    assert [event.said for event in status("bot").events if "adapter" in event.said] == [
        "adapter legal is published: directory:/adapters/legal",
        "adapter medical is published: directory:/adapters/medical",
        "adapter medical is withdrawn",
    ]


def test_a_name_is_one_deployments(spec):
    other = spec.changed({"name": "art", "engine.max_adapters": 0})
    with pytest.raises(SpecError, match="bot answers to it already"):
        deploy(other)
    assert models(spec) == ["art", "bot"]

"""A rehearsal on a real Ray and a real Serve: what is promised of replicas that are killed and
replaced, at the full speed of no model. One deployment for the whole module, in this order."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator

import openai
import psutil
import pytest
import ray
from ray import serve

from rayline.errors import ServingError
from rayline.serving import Endpoint, deploy, status
from rayline.serving.rehearsal import oracle
from rayline.spec import ServeSpec

pytestmark = [pytest.mark.engines, pytest.mark.timeout(200)]

TURNS = [{"role": "user", "content": "what is the capital of France"}]


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> ServeSpec:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    store = tmp_path_factory.mktemp("serving") / "serving.db"
    return ServeSpec.parse(
        {
            "name": "bot",
            # Named and not opened.
            "model": {"directory": "no/such/model"},
            "device": "cpu",
            "gateway": {"port": port, "store": f"sqlite:///{store}"},
            "scale": {"min_replicas": 2, "max_replicas": 2},
            "cpus_per_replica": 0.5,
            "rehearsal": {"first_token_ms": 20, "token_ms": 20},
        }
    )


@pytest.fixture(scope="module")
def endpoint(spec: ServeSpec) -> Iterator[Endpoint]:
    ray.init(
        address="local",
        num_cpus=4,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    try:
        yield deploy(spec)
    finally:
        serve.shutdown()
        ray.shutdown()


@pytest.fixture
def official(endpoint: Endpoint) -> openai.OpenAI:
    return openai.OpenAI(base_url=endpoint.url, api_key="none", max_retries=0)


def replicas() -> list[psutil.Process]:
    below = psutil.Process(os.getpid()).children(recursive=True)
    return [one for one in below if "ServeReplica:bot" in " ".join(one.cmdline())]


def stream(official: openai.OpenAI, tokens: int) -> str:
    chunks = official.chat.completions.create(
        model="bot", messages=TURNS, max_tokens=tokens, temperature=0, stream=True
    )
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)


def test_it_says_what_the_oracle_says(official):
    answer = official.chat.completions.create(model="bot", messages=TURNS, max_tokens=9)
    assert answer.choices[0].message.content == oracle(TURNS, 9)
    assert answer.usage.completion_tokens == 9
    assert stream(official, 9) == oracle(TURNS, 9)
    text = official.completions.create(model="bot", prompt="once upon", max_tokens=4)
    assert text.choices[0].text == oracle("once upon", 4)


def test_streams_outlive_their_replicas(official):
    said: list[str] = []
    asking = [threading.Thread(target=lambda: said.append(stream(official, 150))) for _ in range(6)]
    for one in asking:
        one.start()
    time.sleep(1)
    os.kill(replicas()[0].pid, signal.SIGKILL)
    for one in asking:
        one.join()
    assert said == [oracle(TURNS, 150)] * 6


def test_a_version_that_fails_to_start_leaves_the_one_before_it(endpoint, official, spec):
    with pytest.raises(ServingError, match="as it is told to"):
        deploy(spec.changed({"rehearsal.fails_at_start": True}))
    assert stream(official, 3) == oracle(TURNS, 3)
    deploy(spec.changed({"rehearsal.token_ms": 1}))
    assert stream(official, 3) == oracle(TURNS, 3)
    assert status("bot").up == 2

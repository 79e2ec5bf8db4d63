"""`rayline deploy` in the foreground, with prompts and answers on replicas of their own, which gets
SIGTERM while it answers. The engines rehearse; one deployment for the whole module, in this order.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from rayline.serving.rehearsal import oracle
from support.engine_gang import free_port

if TYPE_CHECKING:
    from conftest import RunningCommand

pytestmark = [pytest.mark.ray, pytest.mark.timeout(200)]

TURNS = [{"role": "user", "content": "what is the capital of France"}]
TOKENS = 100
TOKEN_MS = 50
"""So that an answer takes 5 s."""


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def deployment(
    tmp_path_factory: pytest.TempPathFactory,
    port: int,
    start_command: Callable[[list[str], Path], RunningCommand],
) -> Iterator[RunningCommand]:
    folder = tmp_path_factory.mktemp("serving")
    tree = {
        "name": "bot",
        # Named and not opened.
        "model": {"directory": "no/such/model"},
        "device": "cpu",
        "cpus_per_replica": 0.5,
        "gateway": {"port": port, "store": f"sqlite:///{folder}/serving.db"},
        "engine": {"split": {"min_prompt_tokens": 5}},
        "rehearsal": {"first_token_ms": 20, "token_ms": TOKEN_MS},
    }
    (folder / "serve.yaml").write_text(json.dumps(tree))
    running = start_command(["deploy", "serve.yaml"], folder)
    yield running
    if running.process.poll() is None:
        running.process.terminate()
        running.finish()


@pytest.fixture(scope="module")
def http(deployment: RunningCommand, port: int) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        until_healthy(client, healthy=True, limit_s=120)
        yield client


def test_prompts_are_computed_by_one_replica_and_answered_by_another(http):
    counted = 'rayline_split_prompts_total{computed="elsewhere",model="bot"}'
    deadline_s = time.monotonic() + 60
    # The one that computes prompts may come up after the one that answers.
    while counted not in http.get("/metrics").text:
        assert time.monotonic() < deadline_s
        answer = http.post("/v1/chat/completions", json=body(stream=False, tokens=4))
        assert answer.json()["choices"][0]["message"]["content"] == oracle(TURNS, 4)


def test_sigterm_lets_answers_end_and_turns_others_away(deployment, http):
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(stream, http) for _ in range(4)]
        time.sleep(1)
        deployment.process.send_signal(signal.SIGTERM)
        turned = until_healthy(http, healthy=False, limit_s=5)
        refused = http.post("/v1/chat/completions", json=body(stream=False))
        assert [one.status_code for one in (turned, refused)] == [503, 503]
        assert all(int(one.headers["Retry-After"]) > 0 for one in (turned, refused))
        assert not any(one.done() for one in answers)
        assert [one.result() for one in answers] == [oracle(TURNS, TOKENS)] * 4
    code, _, _ = deployment.finish()
    assert code == 130


def until_healthy(http: httpx.Client, *, healthy: bool, limit_s: float) -> httpx.Response:
    """The answer that says so."""
    deadline_s = time.monotonic() + limit_s
    while True:
        assert time.monotonic() < deadline_s
        try:
            answer = http.get("/health")
        except httpx.TransportError:
            assert healthy, "the door is closed while answers are under way"
        else:
            if (answer.status_code == 200) == healthy:
                return answer
        time.sleep(0.1)


def body(*, stream: bool, tokens: int = TOKENS) -> dict[str, object]:
    return {"model": "bot", "messages": TURNS, "max_tokens": tokens, "stream": stream}


def stream(http: httpx.Client) -> str:
    """The text of an answer that ended well."""
    said = []
    with http.stream("POST", "/v1/chat/completions", json=body(stream=True)) as answer:
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert lines.pop() == "[DONE]"
    for line in lines:
        said += [one["delta"].get("content") or "" for one in json.loads(line)["choices"]]
    return "".join(said)

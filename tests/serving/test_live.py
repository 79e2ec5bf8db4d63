"""A real deployment: Ray, Serve, vLLM, a tiny model, HTTP. One engine for the whole module, and the
tests run in the order of this file: the last two freeze it and take it away.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import time
from collections.abc import Iterator

import httpx
import openai
import psutil
import pytest
import ray
import torch
from ray import serve
from transformers import AutoModelForCausalLM

from rayline.errors import PlacementError, ServingError, SpecError
from rayline.models.tiny import write_tiny_model
from rayline.serving import Endpoint, client, deploy, status, undeploy
from rayline.serving.director.fleet import GatewayReport, ReplicaAddress
from rayline.serving.loop import LoopThread
from rayline.serving.requests import Refusal
from rayline.serving.settings import APP, DIRECTOR
from rayline.serving.wire import Ask, Caller, Item, Piece, Usage
from rayline.spec import ServeSpec
from support.one_rank import run_alone, small_job

pytestmark = [pytest.mark.serve, pytest.mark.timeout(200)]

MAX_MODEL_LEN = 2048
HELLO = [{"role": "user", "content": "What is the capital of France?"}]
TAUGHT = "The capital of France is Paris."


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> ServeSpec:
    """What is served is what a job has trained and exported: one answer, learnt by heart, so that
    no near tie between two tokens decides what comes out."""
    folder = tmp_path_factory.mktemp("job")
    model = write_tiny_model(folder / "model", layers=2)
    chats = folder / "chats.jsonl"
    answer = {"role": "assistant", "content": TAUGHT}
    chats.write_text((json.dumps({"messages": [*HELLO, answer]}) + "\n") * 4)
    job = small_job(folder, "job", model).changed(
        {
            "data": {"kind": "chat", "files": [str(chats)], "sequence_tokens": 128},
            "steps": 60,
            "optim.lr": 3e-3,
        }
    )
    result, reports = run_alone(job, model)
    assert reports[-1].loss < 0.1
    assert result.export is not None
    return ServeSpec.parse(
        {
            "name": "tiny",
            "model": {"directory": result.export.directory},
            "gateway": {"port": free_port(), "store": f"sqlite:///{folder}/serving.db"},
            "engine": {"max_model_len": MAX_MODEL_LEN, "max_num_seqs": 2, "kv_cache_gib": 0.25},
            "cpus_per_replica": 1,
            "drain_s": 5,
            "health_timeout_s": 4,
            "ready_timeout_s": 180,
        }
    )


@pytest.fixture(scope="module")
def endpoint(spec: ServeSpec) -> Iterator[Endpoint]:
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    try:
        yield deploy(spec)
    finally:
        if ray.is_initialized():
            serve.shutdown()
            ray.shutdown()


@pytest.fixture
def official(endpoint: Endpoint) -> openai.OpenAI:
    return openai.OpenAI(base_url=endpoint.url, api_key="none", max_retries=0)


def below_this_process() -> dict[int, str]:
    """Every process that this one has started, with what it is called."""
    return {child.pid: child.name() for child in psutil.Process().children(recursive=True)}


def engine_processes() -> list[int]:
    return sorted(pid for pid, name in below_this_process().items() if name.startswith("VLLM"))


def test_the_first_request_after_deploy_finds_a_warm_engine(endpoint):
    began_s = time.monotonic()
    answer = client.complete(endpoint.url, "tiny", "Hello", max_tokens=1)
    assert answer.completion_tokens == 1
    assert time.monotonic() - began_s < 3


def test_models_and_health(endpoint, official):
    assert [model.id for model in official.models.list()] == ["tiny"]
    assert official.models.retrieve("tiny").id == "tiny"
    health = httpx.get(endpoint.url.removesuffix("/v1") + "/health")
    assert (health.status_code, health.json()["status"]) == (200, "ok")
    (version,) = status("tiny").versions
    assert (version.state, version.up) == ("serving", 1)


def test_chat_and_completions_through_openais_own_client(official):
    chat = official.chat.completions.create(
        model="tiny", messages=HELLO, max_tokens=48, temperature=0
    )
    assert chat.choices[0].message.role == "assistant"
    assert chat.choices[0].message.content == TAUGHT
    assert chat.choices[0].finish_reason == "stop"
    # A token a byte, and the end of the turn.
    assert chat.usage.completion_tokens == len(TAUGHT) + 1
    text = official.completions.create(model="tiny", prompt="Once", max_tokens=8, temperature=0)
    assert text.choices[0].finish_reason in ("stop", "length")
    assert text.usage.total_tokens == text.usage.prompt_tokens + text.usage.completion_tokens


def test_a_stream_says_what_the_whole_answer_says(official):
    asked = {"model": "tiny", "messages": HELLO, "max_tokens": 24, "temperature": 0}
    whole = official.chat.completions.create(**asked).choices[0].message.content
    assert whole == TAUGHT[:24]
    chunks = list(
        official.chat.completions.create(
            **asked, stream=True, stream_options={"include_usage": True}
        )
    )
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == whole
    assert len([piece for piece in pieces if piece]) > 1
    assert chunks[-1].usage.completion_tokens == 24


def test_a_stream_is_events_that_end_with_done(endpoint):
    body = {"model": "tiny", "prompt": "Once", "max_tokens": 4, "stream": True}
    with httpx.stream("POST", f"{endpoint.url}/completions", json=body, timeout=60) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        events = [line for line in response.iter_lines() if line]
    assert all(line.startswith("data: ") for line in events)
    assert events[-1] == "data: [DONE]"


@pytest.mark.parametrize(
    ("route", "changes", "status_code", "code"),
    [
        ("completions", {"prompt": "word " * MAX_MODEL_LEN}, 400, "context_length_exceeded"),
        ("completions", {"max_tokens": "many"}, 400, None),
        ("completions", {"prompt": {"a": 1}}, 400, None),
        ("completions", {"temperature": -3}, 400, None),
        ("completions", {"top_p": 7}, 400, None),
        ("completions", {"logit_bias": {"9999999": 1}}, 400, None),
        ("completions", {"stream": True, "temperature": "hot"}, 400, None),
        ("completions", {"model": "other"}, 404, "model_not_found"),
        ("completions", {"chat_template": "{{ 1 }}"}, 400, "unknown_parameter"),
        ("chat/completions", {"messages": "hello"}, 400, None),
        ("chat/completions", {"messages": [{"role": "user"}]}, None, None),
        ("chat/completions", {"messages": [{"content": "hello"}]}, 400, None),
        ("chat/completions", {"messages": HELLO * 60}, 400, "context_length_exceeded"),
        ("chat/completions", {"messages": HELLO, "max_tokens": 0}, 400, None),
    ],
)
def test_what_the_engine_refuses_comes_back_in_openais_shape(
    endpoint, route, changes, status_code, code
):
    start = {"model": "tiny", "prompt": "Once"} if route == "completions" else {"model": "tiny"}
    response = httpx.post(f"{endpoint.url}/{route}", json={**start, **changes}, timeout=60)
    if status_code is None:
        assert response.status_code < 500
        return
    assert response.status_code == status_code, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert code is None or error["code"] == code
    assert "Traceback" not in response.text
    assert "site-packages" not in response.text


def test_greedy_tokens_are_those_of_transformers(endpoint, spec):
    model = AutoModelForCausalLM.from_pretrained(str(spec.model.directory), dtype=torch.float32)
    draw = torch.Generator().manual_seed(7)
    for number in range(20):
        prompt = torch.randint(0, 256, (4 + number,), generator=draw).tolist()
        body = {"model": "tiny", "prompt": prompt, "max_tokens": 24, "temperature": 0}
        response = httpx.post(
            f"{endpoint.url}/completions",
            json={**body, "ignore_eos": True, "return_token_ids": True},
            timeout=60,
        )
        assert response.json()["choices"][0]["token_ids"] == greedy(model, prompt, 24), prompt


@torch.no_grad()
def greedy(model: torch.nn.Module, prompt: list[int], tokens: int) -> list[int]:
    """The likeliest token, `tokens` times."""
    ids = torch.tensor([prompt])
    for _ in range(tokens):
        ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
    return ids[0, len(prompt) :].tolist()


def test_clients_that_leave_free_the_engine(endpoint):
    """The engine computes two sequences at once: with both taken, a third request waits."""
    asked = {"model": "tiny", "prompt": "Once", "max_tokens": MAX_MODEL_LEN - 100}
    with httpx.Client(timeout=60) as leaving:
        request = leaving.build_request(
            "POST",
            f"{endpoint.url}/completions",
            json={**asked, "ignore_eos": True, "stream": True},
        )
        pieces = [leaving.send(request, stream=True).iter_text() for _ in range(2)]
        assert all(next(stream).startswith("data: ") for stream in pieces)
        with pytest.raises(ServingError, match="timed out"):
            client.complete(endpoint.url, "tiny", "Hello", max_tokens=1, timeout_s=1)
    began_s = time.monotonic()
    client.complete(endpoint.url, "tiny", "Hello", max_tokens=1, timeout_s=30)
    assert time.monotonic() - began_s < 2


def wire(spec: ServeSpec) -> tuple[ReplicaAddress, LoopThread]:
    """Where the only replica listens, and a loop to call it from."""
    director = serve.get_deployment_handle(DIRECTOR, APP)
    fleet = director.sync.remote(GatewayReport("test")).result()
    (offer,) = fleet.models.values()
    (address,) = offer.variants[0].replicas
    return address, LoopThread("test")


async def answer_of(caller: Caller, ask: Ask, leave_after: int | None = None) -> list[Item]:
    """All items of an answer; `leave_after` so many tokens the client goes."""
    call, items, tokens = caller.ask(ask), [], 0
    while not call.finished:
        items += await call.items()
        tokens = sum(len(item.tokens) for item in items if isinstance(item, Piece))
        if leave_after is not None and tokens >= leave_after:
            call.cancel()
    return items


def texts(items: list[Item]) -> list[str]:
    """What the events of an answer say, the end of it as [DONE]."""
    raw = b"".join(item.text for item in items if isinstance(item, Piece)).decode()
    events = [line.removeprefix("data: ") for line in raw.split("\n\n") if line]
    return [
        event if event == "[DONE]" else json.loads(event)["choices"][0].get("text", "")
        for event in events
    ]


WAYS = [
    ({"temperature": 0}, False),
    ({"temperature": 0, "stop": ["zq"]}, False),
    ({"temperature": 0, "presence_penalty": 0.5}, True),
    ({"temperature": 0.8, "seed": 11}, True),
]


def test_a_stream_goes_on_behind_any_token_that_was_sent(spec, endpoint):
    """As from a replica that was lost: over the wire, for every kind of answer that can go on, cut
    after the first token, in the middle of a character, before the last, and behind it."""
    address, thread = wire(spec)
    caller = thread.call(Caller.connect(address.host, address.port, address.secret))
    for number, (sampling, repeat) in enumerate(WAYS):
        tree = {"model": "tiny", "prompt": "Once", "max_tokens": 16, "stream": True}
        tree |= {"ignore_eos": True, **sampling}
        whole = thread.call(answer_of(caller, Ask(f"whole-{number}", "completions", tree)))
        pieces = [item for item in whole if isinstance(item, Piece) and item.tokens]
        tokens = [token for piece in pieces for token in piece.tokens]
        assert len(tokens) == 16
        # A token is a piece, unless somebody else has been busy meanwhile.
        for cut in sorted({1, len(pieces) // 3, len(pieces) // 2, len(pieces) - 1, len(pieces)}):
            sent = [token for piece in pieces[:cut] for token in piece.tokens]
            ask = Ask(
                f"cut-{number}-{cut}", "completions", tree, tuple(sent), repeat, len(sent) == 16
            )
            rest = thread.call(answer_of(caller, ask))
            assert "".join(texts(whole)) == "".join(texts(list(pieces[:cut])) + texts(rest))
            assert rest[-1].completion_tokens == 16
            assert rest[-1].prompt_tokens == whole[-1].prompt_tokens
    thread.close()


def test_another_answer_than_the_one_begun_is_refused(spec, endpoint):
    address, thread = wire(spec)
    caller = thread.call(Caller.connect(address.host, address.port, address.secret))
    tree = {"model": "tiny", "prompt": "Once", "max_tokens": 8, "stream": True, "temperature": 0}
    ask = Ask("other", "completions", tree, emitted=(1, 2, 3), repeat=True)
    items = thread.call(answer_of(caller, ask))
    assert [item.status for item in items if isinstance(item, Refusal)] == [500]
    assert not [item for item in items if isinstance(item, Piece)]
    thread.close()


def test_what_is_counted_is_what_the_engine_counts_also_for_clients_that_leave(spec, endpoint):
    address, thread = wire(spec)
    caller = thread.call(Caller.connect(address.host, address.port, address.secret))

    def generated() -> int:
        time.sleep(1.2)  # the replica tells twice a second
        return caller.load.generated_tokens

    before, counted = generated(), 0
    for number in range(12):
        tree = {"model": "tiny", "prompt": "Once", "max_tokens": 40, "ignore_eos": True}
        stream = number % 3 != 0
        leave = 3 + number if number % 2 and stream else None
        ask = Ask(f"count-{number}", "completions", {**tree, "stream": stream})
        items = thread.call(answer_of(caller, ask, leave))
        assert isinstance(items[-1], Usage)
        assert leave is None or items[-1].completion_tokens < 40
        counted += items[-1].completion_tokens
    assert generated() - before == counted
    assert caller.load.running == caller.load.waiting == 0
    assert caller.load.kv_use == 0
    thread.close()


def test_the_same_spec_again_changes_nothing(endpoint, spec):
    before = engine_processes()
    began_s = time.monotonic()
    assert deploy(spec) == endpoint
    assert time.monotonic() - began_s < 10
    assert engine_processes() == before
    assert before


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"gateway.port": 1}, ServingError, "has one address only"),
        ({"model.directory": "/no/such/model"}, SpecError, "no such folder"),
        ({"cpus_per_replica": 64}, PlacementError, "64 CPU on one node"),
        ({"cpus_per_replica": 2}, PlacementError, "1 of 2 CPUs free"),
    ],
)
def test_what_cannot_work_is_refused_within_seconds(endpoint, spec, changes, error, words):
    began_s = time.monotonic()
    with pytest.raises(error) as refused:
        deploy(spec.changed(changes))
    assert words in str(refused.value)
    assert time.monotonic() - began_s < 20
    (version,) = status("tiny").versions
    assert (version.state, version.up) == ("serving", 1)


def test_nothing_reports_home(endpoint):
    actors = [actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)]
    assert any("replica" in name for name in actors)
    assert not [name for name in actors if "telemetry" in name.lower()]


def test_a_name_that_is_not_deployed_is_refused_with_those_that_are(endpoint):
    with pytest.raises(ServingError, match="no such deployment") as refused:
        undeploy("nobody")
    assert refused.value.allowed == "tiny"


def test_a_machine_that_was_stopped_serves_on(endpoint, spec):
    engine, everything = engine_processes(), psutil.Process().children(recursive=True)
    for process in everything:
        process.suspend()
    time.sleep(2 * spec.health_timeout_s)
    for process in everything:
        process.resume()
    deadline_s = time.monotonic() + 8
    while time.monotonic() < deadline_s:
        assert client.complete(endpoint.url, "tiny", "Hello", max_tokens=1).completion_tokens == 1
        time.sleep(0.2)
    assert engine_processes() == engine


def test_a_frozen_engine_is_taken_out_and_dies_with_its_replica(endpoint):
    frozen = engine_processes()
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)
    deadline_s = time.monotonic() + 45
    while set(frozen) & set(psutil.pids()):
        assert time.monotonic() < deadline_s, "the frozen engine is still there"
        time.sleep(0.5)


def test_nothing_is_left_after_undeploy_and_shutdown(endpoint):
    started = below_this_process()
    assert any(name.startswith("ray::") for name in started.values()), started
    undeploy("tiny")
    with pytest.raises(ServingError, match="none is deployed"):
        status("tiny")
    assert not engine_processes()
    ray.shutdown()
    _, left = psutil.wait_procs(
        [psutil.Process(pid) for pid in started if psutil.pid_exists(pid)], timeout=20
    )
    assert not left

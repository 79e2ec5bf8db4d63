"""Keys, quotas, ledger and records at the gateway, over HTTP. The engines are scripted."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from rayline.serving.access.key_store import KeyStore, open_keys
from rayline.serving.access.usage import sum_usage
from rayline.serving.gateway.http import openai_app
from rayline.serving.gateway.tracing import Traces
from rayline.serving.requests import ROUTES
from rayline.spec import KeySpec, Limits, UsageQuery
from rayline.spec.access import SCOPES
from support.house import House
from support.scripted_engine import ScriptedEngine

CANARY = "canary-words-of-a-prompt"


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    house = House()
    house.start("one")
    yield house
    house.close()


@pytest.fixture(scope="module")
def keys(house: House) -> KeyStore:
    return open_keys(f"sqlite:///{house.folder}/serving.db")


@pytest.fixture(scope="module")
def secret(house: House, keys: KeyStore) -> str:
    secret = issued(keys, KeySpec(name="first", scopes=SCOPES))
    while house.front.door.open_to_all:
        time.sleep(0.05)
    return secret


@pytest.fixture
def http(house: House, secret: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=house.url, timeout=30) as client:
        yield client


def issued(keys: KeyStore, spec: KeySpec) -> str:
    """The secret of a new key."""
    return keys.create(spec).secret


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def ask(http: httpx.Client, secret: str, **more: object) -> httpx.Response:
    body = {"model": "bot", "prompt": "a b", "max_tokens": 5, **more}
    return http.post("/v1/completions", json=body, headers=bearer(secret))


def test_every_path_and_method_that_the_app_has_asks_for_a_key(house, http, keys):
    """The list is read from the live app, so what is added stands under it."""
    narrow = {
        scope: issued(keys, KeySpec(name=f"only {scope}", scopes=(scope,))) for scope in SCOPES
    }
    wanted = {(entry.path, entry.method): entry.scope for entry in ROUTES}
    seen = 0
    for route in openai_app(house.front).routes:
        path = route.path.replace(":path}", "}")
        for method in route.methods - {"HEAD"}:
            scope = wanted[path, method]
            url = path.replace("{model}", "bot")
            if scope is None:
                assert http.request(method, url).status_code == 200
                continue
            seen += 1
            bare = http.request(method, url, content=b"{")
            assert (bare.status_code, bare.json()["error"]["code"]) == (401, "invalid_api_key")
            for other, secret in narrow.items():
                found = http.request(method, url, content=b"{", headers=bearer(secret))
                assert (found.status_code == 403) is (other != scope), (path, other)
    assert seen == sum(entry.scope is not None for entry in ROUTES) > 10
    assert http.request("PUT", "/v1/models").status_code == 405
    assert http.request("GET", "/docs").status_code == 404


def test_a_body_is_not_read_for_who_has_no_key(http):
    huge = http.post("/v1/completions", content=b"{" * 10_000, headers=bearer("rl-nobody"))
    assert huge.status_code == 401


def test_a_revoked_key_is_refused_within_a_second(http, keys):
    secret = issued(keys, KeySpec(name="short-lived"))
    assert ask(http, secret).status_code == 200
    keys.revoke("short-lived")
    time.sleep(1.0)
    assert ask(http, secret).status_code == 401


def test_a_key_is_held_to_its_models(http, keys):
    secret = issued(keys, KeySpec(name="elsewhere", models=("other",)))
    refused = ask(http, secret)
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "model_not_found")


def test_a_limit_holds_and_the_headers_say_what_is_left(http, keys):
    limits = Limits(requests_per_min=5)
    secret = issued(keys, KeySpec(name="slow", limits=limits))
    answers = [ask(http, secret) for _ in range(8)]
    assert [answer.status_code for answer in answers] == [200] * 5 + [429] * 3
    assert answers[0].headers["x-ratelimit-limit-requests"] == "5"
    assert answers[0].headers["x-ratelimit-remaining-requests"] == "4"
    assert answers[-1].json()["error"]["code"] == "rate_limit_exceeded"
    assert int(answers[-1].headers["Retry-After"]) >= 1


def test_what_was_answered_and_what_was_left_stand_in_the_ledger_to_the_token(house, http, keys):
    """400 requests of three kinds, 40 of which the client leaves."""
    secret = issued(keys, KeySpec(name="counted"))
    engine = house.replicas["one"][3]
    assert isinstance(engine, ScriptedEngine)
    before, draw = engine.generated, random.Random(7)

    async def one(client: httpx.AsyncClient, number: int) -> int:
        body = {"model": "bot", "prompt": "a b c", "max_tokens": draw.randrange(1, 30)}
        body |= {"stream": number % 3 > 0}
        async with client.stream("POST", "/v1/completions", json=body) as response:
            if number % 10 == 0:
                async for _ in response.aiter_bytes():
                    break
                return 0
            text = (await response.aread()).decode()
        return text.count('"text"') if body["stream"] else int(body["max_tokens"])

    async def run() -> list[int]:
        engine.token_s = 0.001
        async with httpx.AsyncClient(
            base_url=house.url, headers=bearer(secret), timeout=30
        ) as client:
            gate = asyncio.Semaphore(16)

            async def gated(number: int) -> int:
                async with gate:
                    return await one(client, number)

            return await asyncio.gather(*(gated(number) for number in range(400)))

    received = asyncio.run(run())
    deadline_s = time.monotonic() + 10
    while True:
        time.sleep(0.6)
        (total,) = sum_usage(keys.store, UsageQuery(key="counted"))
        if total.requests == 400 or time.monotonic() > deadline_s:
            break
    assert total.requests == 400
    assert total.completion_tokens == engine.generated - before
    assert total.completion_tokens >= sum(received)
    assert total.prompt_tokens == 3 * 400
    engine.token_s = 0.0


def test_metrics_tell_the_models_share_from_the_gateways(http, secret):
    ask(http, secret, stream=True)
    page = http.get("/metrics", headers=bearer(secret)).text
    sample = 'rayline_tokens_total{key="first",kind="completion",model="bot",version="1"}'
    assert sample in page
    assert 'rayline_framework_seconds_count{model="bot",version="1"}' in page
    assert 'rayline_engine_seconds_count{model="bot",version="1"}' in page
    assert secret not in page


def test_nothing_that_a_client_wrote_is_kept(house, http, secret, caplog):
    spans = InMemorySpanExporter()
    house.front._traces = traces = Traces(spans)
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    headers = {**bearer(secret), "traceparent": parent}
    with caplog.at_level("DEBUG"):
        for prompt in (CANARY, f"fail {CANARY}", "fail"):
            body = {"model": "bot", "prompt": prompt, "user": CANARY, "max_tokens": 3}
            answer = http.post("/v1/completions", json=body, headers=headers)
            assert answer.status_code == (500 if prompt == "fail" else 200)
            if answer.status_code == 500:
                assert CANARY not in answer.text
        http.post("/v1/completions", json={"model": CANARY}, headers=headers)
    page = http.get("/metrics", headers=bearer(secret)).text
    house.front._traces = None
    traces.close()
    kept = [page, caplog.text, *(span.to_json() for span in spans.get_finished_spans())]
    assert all(CANARY not in text and secret not in text for text in kept)
    lines = [record.message for record in caplog.records if record.name == "rayline.access"]
    assert {json.loads(line)["outcome"] for line in lines} == {"complete", "failed"}
    (span, *_) = spans.get_finished_spans()
    assert format(span.context.trace_id, "032x") in parent
    assert span.attributes["gen_ai.usage.output_tokens"] == 3


def test_no_page_of_another_site_may_ask(http, secret):
    headers = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    preflight = http.options("/v1/completions", headers=headers)
    assert preflight.status_code == 405
    answer = http.get("/health", headers={"Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in answer.headers


def test_a_page_that_the_spec_names_may_ask():
    house = House(cors_origins=("https://ours.example",))
    try:
        headers = {"Origin": "https://ours.example", "Access-Control-Request-Method": "POST"}
        preflight = httpx.options(f"{house.url}/v1/completions", headers=headers)
        assert preflight.headers["access-control-allow-origin"] == "https://ours.example"
        headers["Origin"] = "https://evil.example"
        other = httpx.options(f"{house.url}/v1/completions", headers=headers)
        assert "access-control-allow-origin" not in other.headers
    finally:
        house.close()


def test_waiting_requests_of_two_keys_take_turns(keys):
    """One key has thirty requests in the queue; the other's single one does not wait for them."""
    house = House(max_ongoing=1)
    try:
        own = open_keys(f"sqlite:///{house.folder}/serving.db")
        greedy = issued(own, KeySpec(name="greedy"))
        modest = issued(own, KeySpec(name="modest"))
        house.start("one", ScriptedEngine("one", token_s=0.01))
        with httpx.Client(base_url=house.url, timeout=60) as http, ThreadPoolExecutor(40) as pool:
            many = [pool.submit(ask, http, greedy) for _ in range(30)]
            time.sleep(0.5)
            one = pool.submit(ask, http, modest)
            assert one.result().status_code == 200
            waiting = sum(not asked.done() for asked in many)
            assert {asked.result().status_code for asked in many} == {200}
    finally:
        house.close()
    assert waiting > 5

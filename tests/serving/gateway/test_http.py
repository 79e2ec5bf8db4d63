"""The gateway's HTTP surface and the client, over real sockets; the replica's engine is scripted:
this is about shapes, test_live.py is about answers."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import httpx
import pytest

from rayline.errors import ServingError
from rayline.serving import client
from rayline.spec import RequestLimits
from support.house import House
from support.scripted_engine import ScriptedEngine

HTTP = httpx.Client(timeout=30)


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    house = House()
    yield house
    house.close()


@pytest.fixture(scope="module")
def engine(house: House) -> ScriptedEngine:
    return house.start("one")


@pytest.fixture(scope="module")
def url(house: House, engine: ScriptedEngine) -> str:
    return house.url


def ask(url: str, prompt: str, **more: object) -> httpx.Response:
    return HTTP.post(f"{url}/v1/completions", json={"model": "bot", "prompt": prompt, **more})


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "unknown_url"),
        ("POST", "/tokenizer_info", 404, "unknown_url"),
        ("POST", "/pause", 404, "unknown_url"),
        ("GET", "/docs", 404, "unknown_url"),
        ("POST", "/pooling", 404, "unknown_url"),
        ("GET", "/v1/../health/..", 404, "unknown_url"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("DELETE", "/v1/models/bot", 405, "method_not_allowed"),
        ("POST", "/health", 405, "method_not_allowed"),
        ("GET", "/v1/models/other", 404, "model_not_found"),
    ],
)
def test_whatever_is_not_served_is_refused_in_openais_shape(url, method, path, status, code):
    response = HTTP.request(method, url + path)
    assert response.status_code == status
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code


@pytest.mark.parametrize(
    ("prompt", "status", "code"),
    [("refuse", 400, None), ("fail", 500, "internal_error"), ("nothing", 500, "internal_error")],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_inside_has_a_status_and_no_inside(url, prompt, status, code, stream):
    response = ask(url, prompt, stream=stream)
    assert response.status_code == status
    assert response.json()["error"]["code"] == code
    assert "/srv" not in response.text
    assert "Traceback" not in response.text


def test_a_body_over_the_limit_is_refused(url):
    response = HTTP.post(
        f"{url}/v1/completions", content=b"x" * (RequestLimits().max_body_bytes + 2**20)
    )
    assert response.status_code == 413


def test_models_and_health(url):
    cards = HTTP.get(f"{url}/v1/models").json()["data"]
    assert [(card["id"], card["object"]) for card in cards] == [("bot", "model")]
    assert HTTP.get(f"{url}/v1/models/bot").json() == cards[0]
    assert HTTP.get(f"{url}/health").json() == {"status": "ok"}


def test_a_stream_arrives_while_it_is_made(house, url, engine):
    engine.token_s = 0.2
    body = {"model": "bot", "prompt": "to day", "stream": True, "max_tokens": 40}
    began_s = time.monotonic()
    with HTTP.stream("POST", f"{url}/v1/completions", json=body, timeout=5) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert "to" in next(response.iter_text())
        assert time.monotonic() - began_s < 4
    # And the client that has left ends the computation.
    deadline_s = time.monotonic() + 1
    while engine.running:
        assert time.monotonic() < deadline_s
    engine.token_s = 0.0


def test_the_client_reads_answers_and_streams(url):
    hello = [client.Message(role="user", content="hello")]
    answer = client.chat(f"{url}/v1", "bot", hello, max_tokens=3)
    assert answer == client.Answer("hello there hello", "stop", 3, 1)
    assert client.complete(f"{url}/v1", "bot", "a b", max_tokens=3).text == "a b a"
    assert client.served_models(f"{url}/v1") == ["bot"]


def test_the_client_says_what_the_server_said(url):
    with pytest.raises(ServingError, match="HTTP 400: no"):
        client.complete(f"{url}/v1", "bot", "refuse")


def test_the_client_names_an_address_where_nobody_answers():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(ServingError, match="nobody answers there") as refused:
        client.complete(dead, "bot", "hello")
    assert dead in str(refused.value)
    assert refused.value.exit_code == 6

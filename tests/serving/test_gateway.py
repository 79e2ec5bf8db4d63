"""The gateway's HTTP surface and the client, over a real socket. What answers is a few lines here
in the place of replicas: this is about shapes, test_live.py is about answers."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncGenerator, Iterator

import httpx
import pytest
import uvicorn
from ray.exceptions import ActorDiedError
from ray.serve.exceptions import BackPressureError

from rayline.errors import ServingError
from rayline.serving import client
from rayline.serving.gateway import model_card, openai_app
from rayline.serving.requests import Refusal, Reply, Route, Tree, WholeAnswer
from rayline.spec import RequestLimits

WHOLE = (
    '{"choices": [{"message": {"role": "assistant", "content": "hi"}, "text": "hi",'
    ' "finish_reason": "stop"}], "usage": {"prompt_tokens": 3, "completion_tokens": 1}}'
)


class Answers:
    """Stands where the replicas stand; each prompt is a way to behave."""

    def __init__(self) -> None:
        self.up = True
        self.cancelled = threading.Event()

    async def __call__(self, route: Route, tree: Tree) -> AsyncGenerator[Reply, None]:
        text = tree["prompt"] if route == "completions" else tree["messages"][-1]["content"]
        if text == "refuse":
            yield Refusal(400, "no", param="prompt")
        elif text == "fail":
            raise RuntimeError("secret in /srv/app/model.py")
        elif text == "busy":
            raise BackPressureError(9, 8, retry_after_s=2.5)
        elif text == "die":
            raise ActorDiedError
        elif text == "nothing":
            return
        elif not tree.get("stream"):
            yield WholeAnswer(WHOLE)
        else:
            try:
                for word in ("to", "day"):
                    yield f'data: {{"choices": [{{"delta": {{"content": "{word}"}}}}]}}\n\n'
                if text == "break":
                    raise ActorDiedError
                if text == "hang":
                    await asyncio.sleep(60)
                yield "data: [DONE]\n\n"
            finally:
                self.cancelled.set()


@pytest.fixture(scope="module")
def answers() -> Answers:
    return Answers()


@pytest.fixture(scope="module")
def url(answers: Answers) -> Iterator[str]:
    app = openai_app(model_card("bot", 64, "r1"), answers, lambda: answers.up, RequestLimits())
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        # A client that comes before the server has started waits instead of being refused.
        listening.listen()
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical"))
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join(timeout=10)


def ask(url: str, prompt: str, **more: object) -> httpx.Response:
    return httpx.post(f"{url}/v1/completions", json={"model": "bot", "prompt": prompt, **more})


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/", 404, "unknown_url"),
        ("POST", "/tokenize", 404, "unknown_url"),
        ("POST", "/pause", 404, "unknown_url"),
        ("GET", "/docs", 404, "unknown_url"),
        ("GET", "/openapi.json", 404, "unknown_url"),
        ("POST", "/v1/embeddings", 404, "unknown_url"),
        ("GET", "/v1/../health/..", 404, "unknown_url"),
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("DELETE", "/v1/models/bot", 405, "method_not_allowed"),
        ("POST", "/health", 405, "method_not_allowed"),
        ("GET", "/v1/models/other", 404, "model_not_found"),
    ],
)
def test_whatever_is_not_served_is_refused_in_openais_shape(url, method, path, status, code):
    response = httpx.request(method, url + path)
    assert response.status_code == status
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["code"] == code


@pytest.mark.parametrize(
    ("prompt", "status", "code"),
    [
        ("refuse", 400, None),
        ("fail", 500, "internal_error"),
        ("nothing", 500, "internal_error"),
        ("busy", 503, "overloaded"),
        ("die", 503, "unavailable"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_inside_has_a_status_and_no_inside(url, prompt, status, code, stream):
    response = ask(url, prompt, stream=stream)
    assert response.status_code == status
    assert response.json()["error"]["code"] == code
    assert "/srv" not in response.text
    assert "Traceback" not in response.text
    assert ("Retry-After" in response.headers) is (status == 503)


def test_a_client_refused_for_load_is_told_when_to_come_back(url):
    assert ask(url, "busy").headers["Retry-After"] == "3"


def test_a_body_over_the_limit_is_refused(url):
    response = httpx.post(
        f"{url}/v1/completions", content=b"x" * (RequestLimits().max_body_bytes + 2**20)
    )
    assert response.status_code == 413


def test_models_and_health(url, answers):
    cards = httpx.get(f"{url}/v1/models").json()["data"]
    assert [(card["id"], card["object"]) for card in cards] == [("bot", "model")]
    assert httpx.get(f"{url}/v1/models/bot").json() == cards[0]
    assert httpx.get(f"{url}/health").json() == {"status": "ok", "model": "bot"}
    answers.up = False
    not_yet = httpx.get(f"{url}/health")
    answers.up = True
    assert not_yet.status_code == 503


def test_a_stream_arrives_while_it_is_made(url):
    with httpx.stream(
        "POST",
        f"{url}/v1/completions",
        json={"model": "bot", "prompt": "hang", "stream": True},
        timeout=5,
    ) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert "to" in next(response.iter_text())


def test_a_client_that_leaves_ends_the_answer(url, answers):
    answers.cancelled.clear()
    pieces = client.stream_chat(f"{url}/v1", "bot", [{"role": "user", "content": "hang"}])
    assert next(pieces) == "to"
    pieces.close()
    assert answers.cancelled.wait(timeout=5)


def test_a_stream_that_breaks_ends_with_an_error_and_without_done(url):
    text = ask(url, "break", stream=True).text
    assert text.rstrip().splitlines()[-1].startswith('data: {"error":')
    assert "[DONE]" not in text


def test_the_client_reads_answers_and_streams(url):
    hello = [client.Message(role="user", content="hello")]
    assert client.chat(f"{url}/v1", "bot", hello) == client.Answer("hi", "stop", 3, 1)
    assert client.complete(f"{url}/v1", "bot", "hello").text == "hi"
    assert "".join(client.stream_chat(f"{url}/v1", "bot", hello)) == "today"
    assert client.served_models(f"{url}/v1") == ["bot"]


@pytest.mark.parametrize(
    ("content", "words"), [("refuse", "HTTP 400: no"), ("break", "the answer broke off")]
)
def test_the_client_says_what_the_server_said(url, content, words):
    with pytest.raises(ServingError, match=words):
        list(client.stream_chat(f"{url}/v1", "bot", [{"role": "user", "content": content}]))


def test_the_client_names_an_address_where_nobody_answers():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        dead = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(ServingError, match="nobody answers there") as refused:
        client.complete(dead, "bot", "hello")
    assert dead in str(refused.value)
    assert refused.value.exit_code == 6

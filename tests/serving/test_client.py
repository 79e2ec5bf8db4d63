"""The small client where a key is asked for, over HTTP; the engine is scripted."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, Iterator

import pytest

from rayline.errors import ServingError
from rayline.sdk import Client
from rayline.serving import client
from rayline.serving.access.key_store import KeyStore, open_keys
from rayline.serving.wire import Ask, Item, Piece, Usage
from rayline.spec import KeySpec, Limits
from support.house import House
from support.scripted_engine import ScriptedEngine

HELLO = [client.Message(role="user", content="hello")]


class Talker(ScriptedEngine):
    """Streams what a chat streams, or what the prompt says instead."""

    async def _items(self, ask: Ask) -> AsyncGenerator[Item, None]:
        if not ask.tree.get("stream"):
            async for item in super()._items(ask):
                yield item
            return
        self.usages[ask.request_id] = Usage(1, 0, 1)
        asked = ask.tree["messages"][-1]["content"]
        said = {"choices": [{"index": 0, "delta": {"content": "hi"}}]}
        event = asked if asked.startswith("!") else json.dumps(said)
        yield Piece(f"data: {event.removeprefix('!')}\n\n".encode(), (0,), ended=True)
        yield Piece(b"data: [DONE]\n\n")


@pytest.fixture(scope="module")
def house() -> Iterator[House]:
    house = House()
    house.start("one", Talker())
    yield house
    house.close()


@pytest.fixture(scope="module")
def secrets(house: House) -> dict[str, str]:
    """Of each key, by its name."""
    keys: KeyStore = open_keys(f"sqlite:///{house.folder}/serving.db")
    made = {
        spec.name: keys.create(spec).secret
        for spec in (
            KeySpec(name="good"),
            KeySpec(name="looks only", scopes=("models",)),
            KeySpec(name="once", limits=Limits(requests_per_min=1)),
        )
    }
    time.sleep(1.0)
    return made


@pytest.fixture
def url(house: House, secrets: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.delenv(client.KEY_VARIABLE, raising=False)
    return f"{house.url}/v1"


def test_a_key_that_is_given_opens_every_function(url, secrets):
    key = secrets["good"]
    assert client.chat(url, "bot", HELLO, max_tokens=2, api_key=key).completion_tokens == 1
    assert client.complete(url, "bot", "a", max_tokens=2, api_key=key).text == "a a"
    assert list(client.stream_chat(url, "bot", HELLO, max_tokens=2, api_key=key)) == ["hi"]
    assert list(client.stream_answer(url, "hello", max_tokens=2, api_key=key)) == ["hi"]
    assert client.served_models(url, api_key=key) == ["bot"]
    assert [card["id"] for card in client.model_cards(url, api_key=key)] == ["bot"]
    assert Client().chat("hello", url=url, max_tokens=2, api_key=key) == "hi"


def test_a_key_in_the_environment_does_too(url, secrets, monkeypatch):
    monkeypatch.setenv(client.KEY_VARIABLE, secrets["good"])
    assert client.complete(url, "bot", "a", max_tokens=2).text == "a a"
    with pytest.raises(ServingError, match="HTTP 401"):
        client.complete(url, "bot", "a", api_key="")


def test_without_a_key_it_says_where_one_comes_from(url):
    with pytest.raises(ServingError, match="HTTP 401") as refused:
        list(client.stream_chat(url, "bot", HELLO))
    assert "RAYLINE_API_KEY" in str(refused.value)
    assert "rayline keys create" in str(refused.value)


def test_a_key_that_is_not_enough_says_so(url, secrets):
    with pytest.raises(ServingError, match="HTTP 403") as refused:
        client.complete(url, "bot", "a", api_key=secrets["looks only"])
    assert "inference" in str(refused.value)
    assert client.served_models(url, api_key=secrets["looks only"]) == ["bot"]


def test_a_limit_says_when_to_try_again(url, secrets):
    client.complete(url, "bot", "a", max_tokens=1, api_key=secrets["once"])
    with pytest.raises(ServingError, match="HTTP 429") as refused:
        client.complete(url, "bot", "a", max_tokens=1, api_key=secrets["once"])
    assert "try again in" in refused.value.fix
    assert refused.value.exit_code == 6


@pytest.mark.parametrize("key", ["rl two words", "rl-\u00e9", "rl-\n"])
def test_what_is_no_key_is_refused_without_being_shown(url, key):
    with pytest.raises(ServingError, match="not a key") as refused:
        client.complete(url, "bot", "a", api_key=key)
    assert key not in str(refused.value)


@pytest.mark.parametrize(
    ("event", "words"),
    [
        ("!{", "an event is no JSON"),
        ("![]", "an event is no JSON"),
        ('!{"choices": [{"index": 0}]}', "has no 'delta'"),
        ('!{"error": {"message": "it burns"}}', "it burns"),
    ],
)
def test_a_stream_that_is_none_is_an_error(url, secrets, event, words):
    turns = [client.Message(role="user", content=event)]
    with pytest.raises(ServingError, match=words):
        list(client.stream_chat(url, "bot", turns, api_key=secrets["good"]))

"""A small client for OpenAI-compatible endpoints: this room's own, and any other.

Needs httpx alone, so a notebook can use it with the thin core installed. `url` is the address up to
and with /v1. Every function raises ServingError where there is no answer: the address and the
server's own message are in it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import httpx

from rayline.errors import ServingError

ANSWER_TIMEOUT_S = 600.0
"""A whole answer may take as long as its generation."""
CONNECT_TIMEOUT_S = 5.0


class Message(TypedDict):
    """One turn of a chat."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Answer:
    """One whole answer."""

    text: str
    finish_reason: str
    """stop: the model ended it. length: max_tokens or the model's own limit did."""
    prompt_tokens: int
    completion_tokens: int


def chat(
    url: str,
    model: str,
    messages: Sequence[Message],
    *,
    max_tokens: int | None = None,
    temperature: float | None = None,
    timeout_s: float = ANSWER_TIMEOUT_S,
) -> Answer:
    """The next turn of a chat, whole. None leaves a setting to the server."""
    body = _body(model, max_tokens, temperature, messages=list(messages))
    return _answer(_post(url, "chat/completions", body, timeout_s), url, ("message", "content"))


def stream_chat(
    url: str,
    model: str,
    messages: Sequence[Message],
    *,
    max_tokens: int | None = None,
    temperature: float | None = None,
    timeout_s: float = ANSWER_TIMEOUT_S,
) -> Iterator[str]:
    """The next turn of a chat, piece by piece as it is generated. Closing the iterator ends the
    generation on the server."""
    body = _body(model, max_tokens, temperature, messages=list(messages), stream=True)
    with (
        _reaching(url),
        httpx.stream(
            "POST", f"{url}/chat/completions", json=body, timeout=_timeout(timeout_s)
        ) as response,
    ):
        if response.is_error:
            response.read()
            raise _error(url, response)
        for data in _events(response, url):
            for choice in data.get("choices", []):
                if piece := choice["delta"].get("content"):
                    yield piece


def complete(
    url: str,
    model: str,
    prompt: str | Sequence[int],
    *,
    max_tokens: int | None = None,
    temperature: float | None = None,
    timeout_s: float = ANSWER_TIMEOUT_S,
) -> Answer:
    """What follows a text (or the ids of its tokens)."""
    text = prompt if isinstance(prompt, str) else list(prompt)
    body = _body(model, max_tokens, temperature, prompt=text)
    return _answer(_post(url, "completions", body, timeout_s), url, ("text",))


def stream_answer(
    url: str,
    question: str | Sequence[Message],
    *,
    model: str | None = None,
    max_tokens: int | None = None,
    temperature: float | None = None,
) -> Iterator[str]:
    """As `stream_chat`, of one question or several turns; without `model` the first one that is
    served answers."""
    turns: Sequence[Message] = (
        [{"role": "user", "content": question}] if isinstance(question, str) else question
    )
    served = [model] if model is not None else served_models(url)
    if not served:
        raise ServingError("url", "serves no model", value=url)
    yield from stream_chat(url, served[0], turns, max_tokens=max_tokens, temperature=temperature)


def served_models(url: str, *, timeout_s: float = 10.0) -> list[str]:
    """Ids of the models behind the address."""
    return [str(card["id"]) for card in model_cards(url, timeout_s=timeout_s)]


def model_cards(url: str, *, timeout_s: float = 10.0) -> list[dict[str, Any]]:
    """The models behind the address, as it describes them."""
    with _reaching(url):
        response = httpx.get(f"{url}/models", timeout=_timeout(timeout_s))
    cards = _tree(url, response).get("data", [])
    return [card for card in cards if isinstance(card, dict) and "id" in card]


def _body(
    model: str, max_tokens: int | None, temperature: float | None, **rest: object
) -> dict[str, object]:
    settings = {"max_tokens": max_tokens, "temperature": temperature}
    given = {name: value for name, value in settings.items() if value is not None}
    return {"model": model, **given, **rest}


def _post(url: str, route: str, body: dict[str, object], timeout_s: float) -> dict[str, Any]:
    with _reaching(url):
        response = httpx.post(f"{url}/{route}", json=body, timeout=_timeout(timeout_s))
    return _tree(url, response)


def _timeout(timeout_s: float) -> httpx.Timeout:
    return httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S)


class _reaching:  # noqa: N801 - reads as a phrase: `with _reaching(url)`
    """Turns whatever httpx raises on the way into a ServingError."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, wrong: BaseException | None, trace: object) -> None:
        if isinstance(wrong, httpx.ConnectError):
            raise ServingError(
                "url",
                "nobody answers there",
                value=self._url,
                fix="deploy first (rayline deploy serve/chat.yaml), or give the address it printed",
            ) from None
        if isinstance(wrong, httpx.HTTPError | httpx.InvalidURL):
            reason = str(wrong) or type(wrong).__name__
            raise ServingError("url", f"the request failed: {reason}", value=self._url) from None


def _tree(url: str, response: httpx.Response) -> dict[str, Any]:
    if response.is_error:
        raise _error(url, response)
    try:
        tree = response.json()
    except ValueError:
        tree = None
    if not isinstance(tree, dict):
        raise ServingError("url", "not an OpenAI-compatible endpoint: no JSON object", value=url)
    return tree


def _error(url: str, response: httpx.Response) -> ServingError:
    """The server's own words, in OpenAI's shape or not."""
    try:
        message = str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = response.text[:200].strip() or response.reason_phrase
    return ServingError("url", f"HTTP {response.status_code}: {message}", value=url)


def _answer(tree: dict[str, Any], url: str, path: tuple[str, ...]) -> Answer:
    try:
        choice = tree["choices"][0]
        text: Any = choice
        for name in path:
            text = text[name]
        usage = tree["usage"]
        return Answer(
            text=text or "",
            finish_reason=str(choice["finish_reason"]),
            prompt_tokens=int(usage["prompt_tokens"]),
            completion_tokens=int(usage["completion_tokens"]),
        )
    except (KeyError, IndexError, TypeError) as wrong:
        raise ServingError("url", f"the answer has no {wrong}", value=url) from None


def _events(response: httpx.Response, url: str) -> Iterator[dict[str, Any]]:
    """The events of a stream up to [DONE]. Raises ServingError where it breaks off before."""
    for line in response.iter_lines():
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            return
        tree = json.loads(data)
        if "error" in tree:
            raise ServingError(
                "url", f"the answer broke off: {tree['error']['message']}", value=url
            )
        yield tree
    raise ServingError("url", "the answer broke off: the stream has no end", value=url)

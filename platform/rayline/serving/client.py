"""A small client for OpenAI-compatible endpoints: this room's own, and any other.

Needs httpx alone, so a notebook can use it with the thin core installed. `url` is the address up to
and with /v1; `api_key`, where None, is what RAYLINE_API_KEY holds, and no key where that is empty.
Every function raises ServingError where there is no answer: the address and the server's own
message are in it, and what to do about a key that is refused or a limit that is reached.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import httpx

from rayline.errors import ServingError

ANSWER_TIMEOUT_S = 600.0
"""A whole answer may take as long as its generation."""
CONNECT_TIMEOUT_S = 5.0
KEY_VARIABLE = "RAYLINE_API_KEY"
"""Where a key is looked for that is not given."""


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
    api_key: str | None = None,
) -> Answer:
    """The next turn of a chat, whole. None leaves a setting to the server."""
    body = _body(model, max_tokens, temperature, messages=list(messages))
    tree = _post(url, "chat/completions", body, timeout_s, api_key)
    return _answer(tree, url, ("message", "content"))


def stream_chat(
    url: str,
    model: str,
    messages: Sequence[Message],
    *,
    max_tokens: int | None = None,
    temperature: float | None = None,
    timeout_s: float = ANSWER_TIMEOUT_S,
    api_key: str | None = None,
) -> Iterator[str]:
    """The next turn of a chat, piece by piece as it is generated. Closing the iterator ends the
    generation on the server."""
    body = _body(model, max_tokens, temperature, messages=list(messages), stream=True)
    headers, timeout = _headers(api_key), _timeout(timeout_s)
    address = f"{url}/chat/completions"
    with (
        _reaching(url),
        httpx.stream("POST", address, json=body, headers=headers, timeout=timeout) as response,
    ):
        if response.is_error:
            response.read()
            raise _error(url, response)
        for data in _events(response, url):
            for choice in data.get("choices", []):
                if piece := (_part(choice, ("delta",), url) or {}).get("content"):
                    yield piece


def complete(
    url: str,
    model: str,
    prompt: str | Sequence[int],
    *,
    max_tokens: int | None = None,
    temperature: float | None = None,
    timeout_s: float = ANSWER_TIMEOUT_S,
    api_key: str | None = None,
) -> Answer:
    """What follows a text (or the ids of its tokens)."""
    text = prompt if isinstance(prompt, str) else list(prompt)
    body = _body(model, max_tokens, temperature, prompt=text)
    return _answer(_post(url, "completions", body, timeout_s, api_key), url, ("text",))


def stream_answer(
    url: str,
    question: str | Sequence[Message],
    *,
    model: str | None = None,
    max_tokens: int | None = None,
    temperature: float | None = None,
    api_key: str | None = None,
) -> Iterator[str]:
    """As `stream_chat`, of one question or several turns; without `model` the first one that is
    served answers."""
    turns: Sequence[Message] = (
        [{"role": "user", "content": question}] if isinstance(question, str) else question
    )
    served = [model] if model is not None else served_models(url, api_key=api_key)
    if not served:
        raise ServingError("url", "serves no model", value=url)
    yield from stream_chat(
        url, served[0], turns, max_tokens=max_tokens, temperature=temperature, api_key=api_key
    )


def served_models(url: str, *, timeout_s: float = 10.0, api_key: str | None = None) -> list[str]:
    """Ids of the models behind the address."""
    return [str(card["id"]) for card in model_cards(url, timeout_s=timeout_s, api_key=api_key)]


def model_cards(
    url: str, *, timeout_s: float = 10.0, api_key: str | None = None
) -> list[dict[str, Any]]:
    """The models behind the address, as it describes them."""
    headers, timeout = _headers(api_key), _timeout(timeout_s)
    with _reaching(url):
        response = httpx.get(f"{url}/models", headers=headers, timeout=timeout)
    cards = _tree(url, response).get("data", [])
    return [card for card in cards if isinstance(card, dict) and "id" in card]


def _body(
    model: str, max_tokens: int | None, temperature: float | None, **rest: object
) -> dict[str, object]:
    settings = {"max_tokens": max_tokens, "temperature": temperature}
    given = {name: value for name, value in settings.items() if value is not None}
    return {"model": model, **given, **rest}


def _post(
    url: str, route: str, body: dict[str, object], timeout_s: float, api_key: str | None
) -> dict[str, Any]:
    headers, timeout = _headers(api_key), _timeout(timeout_s)
    with _reaching(url):
        response = httpx.post(f"{url}/{route}", json=body, headers=headers, timeout=timeout)
    return _tree(url, response)


def _headers(api_key: str | None) -> dict[str, str]:
    key = os.environ.get(KEY_VARIABLE, "") if api_key is None else api_key
    if not key:
        return {}
    # The key itself is not shown: it is a secret even where it is misspelt.
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise ServingError("api_key", "not a key: it holds spaces, or what is not ASCII")
    return {"Authorization": f"Bearer {key}"}


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
            raise ServingError(
                "url",
                f"the request failed: {reason}",
                value=self._url,
                fix="give the address up to /v1, such as http://127.0.0.1:8000/v1",
            ) from None


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
    """The server's own words, in OpenAI's shape or not, and what to do where that is known."""
    try:
        message = str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = response.text[:200].strip() or response.reason_phrase
    problem, fix = f"HTTP {response.status_code}: {message}", ""
    wait_s = response.headers.get("retry-after", "")
    if response.status_code == httpx.codes.UNAUTHORIZED:
        fix = f"give api_key, or set {KEY_VARIABLE}; rayline keys create NAME makes a key"
    elif response.status_code == httpx.codes.FORBIDDEN:
        fix = "take a key with this scope and this model; rayline keys list shows what each may do"
    elif wait_s.isdigit():
        fix = f"try again in {wait_s} s"
    return ServingError("url", problem, value=url, fix=fix)


def _answer(tree: dict[str, Any], url: str, path: tuple[str, ...]) -> Answer:
    choice, usage = _part(tree, ("choices", 0), url), _part(tree, ("usage",), url)
    return Answer(
        text=_part(choice, path, url) or "",
        finish_reason=str(_part(choice, ("finish_reason",), url)),
        prompt_tokens=int(_part(usage, ("prompt_tokens",), url)),
        completion_tokens=int(_part(usage, ("completion_tokens",), url)),
    )


def _part(tree: Any, path: tuple[str | int, ...], url: str) -> Any:
    """What stands at a path. Raises ServingError where an answer has nothing there."""
    try:
        for name in path:
            tree = tree[name]
    except (KeyError, IndexError, TypeError) as wrong:
        raise ServingError("url", f"the answer has no {wrong}", value=url) from None
    return tree


def _events(response: httpx.Response, url: str) -> Iterator[dict[str, Any]]:
    """The events of a stream up to [DONE]. Raises ServingError where it breaks off before."""
    for line in response.iter_lines():
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            return
        try:
            tree = json.loads(data)
        except ValueError:
            tree = None
        if not isinstance(tree, dict):
            raise ServingError("url", "the answer broke off: an event is no JSON", value=url)
        if "error" in tree:
            raise ServingError(
                "url", f"the answer broke off: {tree['error']['message']}", value=url
            )
        yield tree
    raise ServingError("url", "the answer broke off: the stream has no end", value=url)

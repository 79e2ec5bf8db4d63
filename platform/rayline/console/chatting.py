"""The playground: a chat through the console to the gateway, with the visitor's own API key.

The key comes with each request and is kept nowhere. What the gateway streams goes on piece by
piece, with the times as they are felt here; when the browser leaves, so does the request, and the
gateway ends the computation.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

import httpx
from fastapi import APIRouter, Depends, Header, Request, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from rayline.console.deployment_views import chat_targets
from rayline.console.entering import Console, answer, console_of, deliberate
from rayline.console.looking import all_asked, known_models
from rayline.serving.client import ANSWER_TIMEOUT_S, CONNECT_TIMEOUT_S, model_cards

router = APIRouter(prefix="/api/chat", dependencies=[Depends(deliberate)])

ApiKey = Annotated[str, Header(alias="x-model-key", max_length=256)]
"""Of the gateway; in a header of its own, which no log has."""
_MOST_CHARACTERS = 200_000


class Turn(BaseModel):
    """One turn of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str = Field(max_length=_MOST_CHARACTERS)


class Question(BaseModel):
    """What one side of the playground asks."""

    model: str = Field(max_length=128)
    turns: list[Turn] = Field(min_length=1, max_length=200)
    session: str | None = Field(default=None, max_length=128)
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)

    def body(self) -> dict[str, Any]:
        """In OpenAI's shape."""
        tree = {
            "model": self.model,
            "messages": [turn.model_dump() for turn in self.turns],
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "prompt_cache_key": self.session,
        }
        return {name: value for name, value in tree.items() if value is not None}


@router.post("/targets")
async def targets(request: Request, key: ApiKey = "") -> Response:
    """What can be asked with this key."""
    return answer(await run_in_threadpool(_targets, console_of(request), key))


def _targets(console: Console, key: str) -> dict[str, Any]:
    url = console.settings.url
    cards, problem = all_asked(lambda: model_cards(url, api_key=key))
    if not key and "HTTP 401" in problem:
        problem = "The gateway asks for an API key: rayline keys create NAME makes one."
    served = [] if console.settings.address is None else console.sight.served()[0]
    return {"targets": chat_targets(known_models(cards), served), "problem": problem}


@router.post("/ask", response_class=EventSourceResponse)
async def ask(
    question: Question, request: Request, key: ApiKey = ""
) -> AsyncIterator[ServerSentEvent]:
    """The answer, as it comes: events `piece`, then `done` with its times, or `wrong`."""
    console = console_of(request)
    told = question.turns[-1].content
    line = console.sight.lines.chat(told, question.model, question.max_tokens, question.temperature)
    yield ServerSentEvent(event="line", data=line)
    async for event in _answered(console.settings.url, question.body(), key):
        yield event


async def _answered(url: str, body: dict[str, Any], key: str) -> AsyncIterator[ServerSentEvent]:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    timeout = httpx.Timeout(ANSWER_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
    asked_s = time.perf_counter()
    try:
        async with (
            httpx.AsyncClient(timeout=timeout) as http,
            http.stream("POST", f"{url}/chat/completions", json=body, headers=headers) as response,
        ):
            if response.is_error:
                await response.aread()
                yield ServerSentEvent(event="wrong", data=_said(response))
                return
            async for event in _events(response, asked_s):
                yield event
    except (httpx.HTTPError, httpx.InvalidURL, UnicodeEncodeError) as wrong:
        reason = str(wrong) or type(wrong).__name__
        yield ServerSentEvent(event="wrong", data=f"The gateway at {url} does not answer: {reason}")


async def _events(response: httpx.Response, asked_s: float) -> AsyncIterator[ServerSentEvent]:
    """What a stream says, and how long it took."""
    first_s: float | None = None
    pieces, usage = 0, None
    async for line in response.aiter_lines():
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            now_s = time.perf_counter()
            yield ServerSentEvent(
                event="done", data=times(asked_s, first_s or now_s, now_s, pieces, usage)
            )
            return
        tree = json.loads(data)
        if "error" in tree:
            yield ServerSentEvent(event="wrong", data=str(tree["error"].get("message", tree)))
            return
        usage = tree.get("usage") or usage
        for choice in tree.get("choices", []):
            text = (choice.get("delta") or {}).get("content")
            if text:
                first_s = first_s or time.perf_counter()
                pieces += 1
                yield ServerSentEvent(event="piece", data=text)
    yield ServerSentEvent(event="wrong", data="The answer broke off: its stream has no end.")


def times(
    asked_s: float, first_s: float, done_s: float, pieces: int, usage: dict[str, Any] | None
) -> dict[str, float | int | None]:
    """How an answer came; `usage` is the engine's own count, where it told one."""
    tokens = int((usage or {}).get("completion_tokens") or pieces)
    between_s = (done_s - first_s) / (tokens - 1) if tokens > 1 else None
    return {
        "ttft_ms": 1000 * (first_s - asked_s),
        "tpot_ms": None if between_s is None else 1000 * between_s,
        "seconds": done_s - asked_s,
        "tokens": tokens,
        "prompt_tokens": (usage or {}).get("prompt_tokens"),
    }


def _said(response: httpx.Response) -> str:
    """A gateway's refusal in its own words."""
    try:
        message = str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = response.text[:200] or response.reason_phrase
    return f"HTTP {response.status_code}: {message}"

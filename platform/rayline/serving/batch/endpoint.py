"""A batch put to a server over HTTP: ours, or any that speaks OpenAI's API.

So many requests are under way at once. A server that has no room (429, 503) or cannot be reached is
asked again, as late as it says (Retry-After) or twice as late each time; what it answers otherwise
is the answer, an error too. Where it cannot be reached for longer than `patience_s` the batch ends,
without an answer for what was under way: run again, it goes on there.
"""

from __future__ import annotations

import asyncio
import email.utils
import random
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import httpx

from rayline.errors import ServingError
from rayline.serving.batch.lines import BatchAnswer, BatchFile, BatchLine
from rayline.serving.batch.output import BatchOutput
from rayline.serving.requests import Tree

CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 600.0
_NOT_NOW = frozenset({429, 502, 503, 504})
"""What a server, or what stands before it, says when asking later helps."""
_REFUSED = frozenset({401, 403})
_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 30.0
_LONGEST_ASKED_S = 300.0
"""No server is waited for longer than this at once, whatever it says."""


@dataclass(frozen=True, slots=True)
class EndpointSettings:
    """How a server is asked."""

    url: str
    """Up to and with /v1."""
    key: str | None = None
    """Sent as a bearer token."""
    concurrency: int = 16
    """Requests under way at once."""
    patience_s: float = 600.0
    """How long one request is tried again before the batch ends."""

    def address_of(self, line: BatchLine) -> str:
        """Where a line's request goes."""
        return self.url.rstrip("/").removesuffix("/v1") + line.url


def retry_wait_s(attempt: int, retry_after: str | None, now_s: float, draw: float) -> float:
    """How long to wait before the next try. `attempt` counts from 0, `retry_after` is the header,
    in seconds or as a date, `now_s` the Unix time, `draw` between 0 and 1: requests that were
    refused together do not all come back together."""
    asked_s = _seconds(retry_after, now_s)
    if asked_s is not None:
        return min(_LONGEST_ASKED_S, asked_s) + draw * _FIRST_WAIT_S
    doubled_s = min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2 ** min(attempt, 30))
    return doubled_s * (0.5 + draw / 2)


def run_on_endpoint(
    file: BatchFile,
    output: BatchOutput,
    settings: EndpointSettings,
    observe: Callable[[], None] = lambda: None,
) -> None:
    """Ask every line that has no answer yet. `observe` is called after each answer.

    Raises ServingError where the server refuses the key, or is out of reach for too long; what was
    answered until then stands in the output.
    """
    try:
        asyncio.run(_run(file, output, settings, observe))
    except BaseExceptionGroup as several:
        # One that fails ends the others; the first is what happened.
        raise several.exceptions[0] from None


async def _run(
    file: BatchFile,
    output: BatchOutput,
    settings: EndpointSettings,
    observe: Callable[[], None],
) -> None:
    waiting = iter([line for line in file.lines if line.custom_id not in output.done])
    headers = {} if settings.key is None else {"Authorization": f"Bearer {settings.key}"}
    timeout = httpx.Timeout(ANSWER_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
    limits = httpx.Limits(max_connections=settings.concurrency)
    try:
        client = httpx.AsyncClient(headers=headers, timeout=timeout, limits=limits)
    except ValueError as wrong:
        raise ServingError("url", f"cannot be asked: {wrong}", value=settings.url) from None
    async with client, asyncio.TaskGroup() as group:
        asking = _Asking(client, settings, file, output, observe)
        for _ in range(settings.concurrency):
            group.create_task(asking.work(waiting))


@dataclass(frozen=True, slots=True)
class _Asking:
    client: httpx.AsyncClient
    settings: EndpointSettings
    file: BatchFile
    output: BatchOutput
    observe: Callable[[], None]

    async def work(self, waiting: Iterator[BatchLine]) -> None:
        """Take one line after another."""
        for line in waiting:
            (body,) = self.file.bodies([line])
            self.output.write(await self._answer(line, body))
            self.observe()

    async def _answer(self, line: BatchLine, body: Tree) -> BatchAnswer:
        began_s, attempt = time.monotonic(), 0
        while True:
            retry_after, reason = None, ""
            try:
                response = await self.client.post(self.settings.address_of(line), json=body)
            except (httpx.TransportError, httpx.InvalidURL) as wrong:
                if isinstance(wrong, httpx.InvalidURL | httpx.UnsupportedProtocol):
                    raise ServingError("url", f"{wrong}", value=self.settings.url) from None
                reason = str(wrong) or type(wrong).__name__
            else:
                if response.status_code in _REFUSED:
                    raise _key_refused(self.settings.url, response)
                if response.status_code not in _NOT_NOW:
                    return _as_answer(line, response)
                reason = f"HTTP {response.status_code}"
                retry_after = response.headers.get("retry-after")
            wait_s = retry_wait_s(attempt, retry_after, time.time(), random.random())
            if time.monotonic() - began_s + wait_s > self.settings.patience_s:
                raise ServingError(
                    "url",
                    f"does not answer: {reason}, for {self.settings.patience_s:g} s",
                    value=self.settings.url,
                    fix="run the same command again once it does: it goes on where it ended",
                )
            await asyncio.sleep(wait_s)
            attempt += 1


def _seconds(retry_after: str | None, now_s: float) -> float | None:
    if retry_after is None:
        return None
    try:
        return max(0.0, float(retry_after))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - now_s)
    except ValueError:
        return None


def _as_answer(line: BatchLine, response: httpx.Response) -> BatchAnswer:
    request_id = response.headers.get("x-request-id") or f"req_{uuid.uuid4().hex}"
    try:
        body = response.json()
    except ValueError:
        body = None
    if isinstance(body, dict):
        return BatchAnswer(line.custom_id, response.status_code, request_id, body)
    # What stands before a server answers in HTML at times.
    status = 502 if response.is_success else response.status_code
    message = f"HTTP {response.status_code} without a JSON object: {response.text[:200].strip()}"
    error = {"message": message, "type": "server_error", "param": None, "code": "no_json"}
    return BatchAnswer(line.custom_id, status, request_id, {"error": error})


def _key_refused(url: str, response: httpx.Response) -> ServingError:
    try:
        said = str(response.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        said = response.reason_phrase
    return ServingError(
        "url",
        f"refuses the key: {said}",
        value=url,
        fix="set RAYLINE_API_KEY to a key that may ask these models",
    )

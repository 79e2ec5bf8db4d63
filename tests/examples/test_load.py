"""The load client against a server that answers as it is told: what is wrong is counted by kind."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BENCHES = Path(__file__).parents[2] / "examples" / "bench"


@pytest.fixture(scope="module", autouse=True)
def benches() -> Iterator[None]:
    sys.path.insert(0, str(BENCHES))
    yield
    sys.path.remove(str(BENCHES))


def event(tree: Any) -> bytes:
    return f"data: {json.dumps(tree)}\n\n".encode()


def spoken(*words: str) -> list[bytes]:
    """The events of a chat that says these words."""
    deltas = [{"role": "assistant", "content": ""}, *({"content": word} for word in words)]
    usage = {"prompt_tokens": 4, "completion_tokens": len(words)}
    return [
        *(event({"choices": [{"delta": delta}]}) for delta in deltas),
        event({"choices": [], "usage": usage}),
    ]


DONE = b"data: [DONE]\n\n"
WHOLE = [*spoken("a ", "b ", "c "), DONE]


class Script:
    """A server whose answers are all these parts, a write apart; with `cut` it breaks off then."""

    def __init__(
        self, parts: list[bytes], status: str = "200 OK", *, cut: bool = False, header: str = ""
    ) -> None:
        self._parts, self._status, self._cut, self._header = parts, status, cut, header
        self.connections = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                await reader.readexactly(length)
                await self._answer(writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, writer: asyncio.StreamWriter) -> None:
        head = f"HTTP/1.1 {self._status}\r\n{self._header}Transfer-Encoding: chunked\r\n\r\n"
        writer.write(head.encode())
        for part in self._parts:
            writer.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
            await writer.drain()
            await asyncio.sleep(0.002)
        if self._cut:
            raise ConnectionError
        writer.write(b"0\r\n\r\n")


def asked(script: Script, count: int = 1, timeout_s: float = 5.0, **wanted: Any) -> list[Any]:
    """What the client makes of it."""
    from asking import Question
    from load import Server, closed_loop

    async def ask() -> list[Any]:
        server = await asyncio.start_server(script, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        question = Question("/v1/chat/completions", b"{}", **wanted)
        async with server:
            return await closed_loop(
                Server(f"http://127.0.0.1:{port}/v1"),
                iter([question] * count),
                2,
                timeout_s=timeout_s,
            )

    return asyncio.run(ask())


def test_whole_answers_are_read_to_their_end_over_connections_that_stay_open():
    script = Script(WHOLE)
    answers = asked(script, 6, tokens=3, text="a b c ")
    assert script.connections == 2
    for answer in answers:
        assert (answer.failure, answer.tokens, answer.prompt_tokens) == (None, 3, 4)
        assert answer.text == "a b c "
        assert len(answer.token_events_s) == answer.reads == 3
        assert answer.began_s < answer.token_events_s[0] < answer.token_events_s[-1]
        assert answer.token_events_s[-1] < answer.ended_s


def test_events_that_come_together_are_one_read():
    (answer,) = asked(Script([b"".join(WHOLE)]), tokens=3)
    assert len(answer.token_events_s) == 3
    assert answer.reads == 1


def test_events_are_put_together_from_wherever_they_are_torn():
    raw = b"".join(WHOLE)
    (answer,) = asked(Script([raw[:7], raw[7:60], raw[60:]]), tokens=3, text="a b c ")
    assert answer.failure is None


def test_an_answer_that_does_not_stream():
    body = {
        "choices": [{"message": {"content": "a b "}}],
        "usage": {"prompt_tokens": 4, "completion_tokens": 2},
    }
    (answer,) = asked(Script([json.dumps(body).encode()]), tokens=2, text="a b ")
    assert answer.failure is None


@pytest.mark.parametrize(
    ("script", "kind", "started"),
    [
        (Script(WHOLE[:3], cut=True), "cut", True),
        (Script([], cut=True), "cut", False),
        (Script(WHOLE[:-1]), "no [DONE]", True),
        (Script([*spoken("a "), DONE]), "wrong count of tokens", True),
        (Script([*spoken("a ", "b ", "d "), DONE]), "wrong text", True),
        (Script([*WHOLE[:3], event({"error": {"message": "lost"}})]), "error event", True),
        (Script([b"{}"], "503 Busy", header="Retry-After: 7\r\n"), "status 503", False),
    ],
    ids=["cut", "cut at once", "no end", "count", "text", "error", "refused"],
)
def test_each_way_to_fail_is_one_kind(script, kind, started):
    (answer,) = asked(script, tokens=3, text="a b c ")
    assert (answer.failure, answer.started) == (kind, started)
    assert answer.retry_after == ("7" if kind == "status 503" else None)


def test_silence_is_a_failure_too():
    class Silent(Script):
        async def _answer(self, writer: asyncio.StreamWriter) -> None:
            await asyncio.sleep(1)

    (answer,) = asked(Silent([]), timeout_s=0.1)
    assert answer.failure == "timeout"


def test_a_client_that_leaves_has_not_failed():
    (answer,) = asked(Script(WHOLE), tokens=3, leave_after=2)
    assert answer.left
    assert (answer.failure, len(answer.token_events_s)) == (None, 1)


def test_the_summary_counts_whole_answers_and_failures_apart():
    from load import summary

    answers = asked(Script(WHOLE), 4, tokens=3) + asked(Script(WHOLE[:-1]), 2, tokens=3)
    found = summary(answers)
    assert (found["requests"], found["failures"]) == (6, {"no [DONE]": 2})
    assert found["tokens_per_s"] == pytest.approx(3 * found["requests_per_s"], rel=1e-3)
    assert found["token_events_per_stream"] == 3
    assert 0 < found["ttft_ms"]["p50"] < found["whole_ms"]["p50"]

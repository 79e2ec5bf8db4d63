"""AsyncClient: Client's methods, all of them, with Client's signatures; results and pieces come,
and leaving early or being cancelled reaches what runs."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from rayline import AsyncClient, Client, JobSpec
from rayline.errors import ServingError
from rayline.sdk.async_client import AsyncClusters, _streamed, _threaded
from rayline.sdk.clusters import Clusters
from support.echo import echo_endpoint

PAIRS = [(Client, AsyncClient), (Clusters, AsyncClusters)]


def public(kind: type) -> dict[str, object]:
    found = inspect.getmembers(kind, inspect.isfunction)
    return {name: method for name, method in found if not name.startswith("_")}


@pytest.mark.parametrize(("blocking", "waiting"), PAIRS)
def test_no_method_is_missing_and_signatures_are_equal(blocking: type, waiting: type) -> None:
    theirs, ours = public(blocking), public(waiting)
    assert ours.keys() == theirs.keys()
    for name, method in theirs.items():
        assert inspect.signature(ours[name]) == inspect.signature(method), name  # type: ignore[arg-type]
        assert ours[name].__doc__ == method.__doc__
        streams = "Iterator" in str(inspect.signature(method).return_annotation)  # type: ignore[arg-type]
        own = ours[name].__code__  # type: ignore[attr-defined]
        assert bool(own.co_flags & inspect.CO_ASYNC_GENERATOR) is streams, name
        assert bool(own.co_flags & inspect.CO_COROUTINE) is not streams, name
    ours_made, theirs_made = inspect.signature(waiting), inspect.signature(blocking)
    if blocking is Client:
        assert ours_made.parameters == theirs_made.parameters


def test_a_call_is_awaited_while_the_loop_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    job = JobSpec.load("jobs/specs/tiny-3d.yaml")

    async def both() -> tuple[int, bool]:
        client = AsyncClient()
        plan, shape = await asyncio.gather(client.plan(job), client.model_shape(job))
        return plan.parameters, shape == plan.model

    assert asyncio.run(both()) == (658_560, True)


def test_an_answer_streams_and_errors_are_clients_own() -> None:
    async def ask(url: str) -> list[str]:
        return [piece async for piece in AsyncClient().stream("a b", url=url, model="named")]

    with echo_endpoint() as url:
        assert asyncio.run(ask(url)) == ["named", " a", " b"]
    with pytest.raises(ServingError, match="nobody answers there"):
        asyncio.run(ask("http://127.0.0.1:9/v1"))


class Slow:
    """A client of whose calls something is left to see."""

    def __init__(self) -> None:
        self.closed = threading.Event()
        self.stopped = threading.Event()
        self.began = threading.Event()

    def count(self) -> Iterator[int]:
        try:
            for number in range(1000):
                yield number
                time.sleep(0.01)
        finally:
            self.closed.set()

    def work(self, *, stop: threading.Event | None = None) -> str:
        assert stop is not None
        self.began.set()
        if stop.wait(10):
            self.stopped.set()
        return "ended"


class AsyncSlow:
    def __init__(self) -> None:
        self.blocking = Slow()

    count = _streamed(Slow.count)
    work = _threaded(Slow.work)


def test_leaving_a_stream_early_closes_it() -> None:
    async def look(slow: AsyncSlow) -> int:
        pieces: AsyncIterator[int] = slow.count()
        async for piece in pieces:
            if piece == 3:
                break
        await pieces.aclose()  # type: ignore[attr-defined]
        return piece

    slow = AsyncSlow()
    assert asyncio.run(look(slow)) == 3
    assert slow.blocking.closed.wait(5)


def test_a_cancelled_job_is_told_to_stop() -> None:
    async def give_up(slow: AsyncSlow) -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(slow.work(), 0.2)

    slow = AsyncSlow()
    asyncio.run(give_up(slow))
    assert slow.blocking.began.is_set()
    assert slow.blocking.stopped.wait(5)

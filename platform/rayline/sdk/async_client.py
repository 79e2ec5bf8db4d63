"""AsyncClient: every method of Client for an event loop.

Nothing is written twice: `_threaded` and `_streamed` turn a method of Client into one that awaits
the same call in a thread. What the type checker sees are Client's own parameters and results, and
tests/sdk/test_async.py holds that no method is missing.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, cast

from rayline.sdk.client import Client
from rayline.sdk.clusters import Clusters
from rayline.spec import TrackingSpec

P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S")
S_co = TypeVar("S_co", covariant=True)


class _Wraps(Protocol, Generic[S_co]):
    """Something that stands before a client whose methods block."""

    @property
    def blocking(self) -> S_co: ...


def _threaded(
    method: Callable[Concatenate[S, P], R],
) -> Callable[Concatenate[_Wraps[S], P], Coroutine[Any, Any, R]]:
    """The method, awaited in a thread.

    Cancelled, it is waited for no more. A method that takes `stop` hears of that: a job then ends
    after the step in flight, with a checkpoint. Others go on to their end.
    """
    can_stop = "stop" in inspect.signature(method).parameters

    @functools.wraps(method)
    async def call(self: _Wraps[S], /, *args: P.args, **kwargs: P.kwargs) -> R:
        if can_stop and kwargs.get("stop") is None:
            kwargs["stop"] = threading.Event()
        try:
            return await asyncio.to_thread(method, self.blocking, *args, **kwargs)
        except asyncio.CancelledError:
            stop = kwargs.get("stop")
            if isinstance(stop, threading.Event):
                stop.set()
            raise

    return call


def _streamed(
    method: Callable[Concatenate[S, P], Iterator[R]],
) -> Callable[Concatenate[_Wraps[S], P], AsyncIterator[R]]:
    """The method, whose pieces come as they are made; leaving the loop early closes it."""

    @functools.wraps(method)
    async def call(self: _Wraps[S], /, *args: P.args, **kwargs: P.kwargs) -> AsyncIterator[R]:
        over = object()
        loop, context = asyncio.get_running_loop(), contextvars.copy_context()
        # One thread of its own: pieces are asked for one after another, and closing waits its turn.
        with _leaving(ThreadPoolExecutor(1, "rayline-stream")) as thread:
            pieces = method(self.blocking, *args, **kwargs)

            def following() -> object:
                return context.run(lambda: next(pieces, over))

            try:
                while (piece := await loop.run_in_executor(thread, following)) is not over:
                    yield cast(R, piece)
            finally:
                thread.submit(getattr(pieces, "close", lambda: None))

    return call


class _leaving:  # noqa: N801 - reads as a phrase: `with _leaving(pool)`
    """Ends a pool once what was asked of it is done, without waiting for that."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool

    def __enter__(self) -> ThreadPoolExecutor:
        return self._pool

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=False)


class AsyncClusters:
    """Clusters, for an event loop."""

    def __init__(self, blocking: Clusters) -> None:
        self.blocking = blocking

    check = _threaded(Clusters.check)
    down = _threaded(Clusters.down)
    known = _threaded(Clusters.known)
    plan = _threaded(Clusters.plan)
    render = _threaded(Clusters.render)
    status = _threaded(Clusters.status)
    up = _threaded(Clusters.up)


class AsyncClient:
    """Client, for an event loop: the same arguments, methods and results, awaited.

    Each call runs in a thread; observers are called there too. `blocking` is the Client behind it.

        client = AsyncClient()
        outcome = await client.train(job)
        async for piece in client.stream("What is the capital of France?"):
            print(piece, end="")
    """

    def __init__(
        self,
        *,
        address: str | None = None,
        jobs_url: str | None = None,
        tracking: TrackingSpec | None = None,
        store: str | None = None,
    ) -> None:
        self.blocking = Client(address=address, jobs_url=jobs_url, tracking=tracking, store=store)
        self.cluster = AsyncClusters(self.blocking.cluster)

    attach = _streamed(Client.attach)
    batch = _threaded(Client.batch)
    canary = _threaded(Client.canary)
    chaos = _threaded(Client.chaos)
    chat = _threaded(Client.chat)
    check_data = _threaded(Client.check_data)
    close = _threaded(Client.close)
    copy_spec = _threaded(Client.copy_spec)
    create_key = _threaded(Client.create_key)
    dashboard_url = _threaded(Client.dashboard_url)
    deploy = _threaded(Client.deploy)
    doctor = _threaded(Client.doctor)
    export = _threaded(Client.export)
    export_checkpoint = _threaded(Client.export_checkpoint)
    export_job = _threaded(Client.export_job)
    import_checkpoint = _threaded(Client.import_checkpoint)
    init = _threaded(Client.init)
    jobs = _threaded(Client.jobs)
    key = _threaded(Client.key)
    keys = _threaded(Client.keys)
    limit_team = _threaded(Client.limit_team)
    logs = _threaded(Client.logs)
    model_shape = _threaded(Client.model_shape)
    models = _threaded(Client.models)
    plan = _threaded(Client.plan)
    plan_deployment = _threaded(Client.plan_deployment)
    plans = _threaded(Client.plans)
    promote = _threaded(Client.promote)
    publish = _threaded(Client.publish)
    resume = _threaded(Client.resume)
    resumed_job = _threaded(Client.resumed_job)
    revoke_key = _threaded(Client.revoke_key)
    rollback = _threaded(Client.rollback)
    rotate_key = _threaded(Client.rotate_key)
    run = _threaded(Client.run)
    runs = _threaded(Client.runs)
    schema = _threaded(Client.schema)
    served = _threaded(Client.served)
    specs = _threaded(Client.specs)
    status = _threaded(Client.status)
    stop = _threaded(Client.stop)
    stream = _streamed(Client.stream)
    submit = _threaded(Client.submit)
    train = _threaded(Client.train)
    tune = _threaded(Client.tune)
    undeploy = _threaded(Client.undeploy)
    usage = _threaded(Client.usage)
    validate = _threaded(Client.validate)
    verify = _threaded(Client.verify)
    wait = _threaded(Client.wait)
    withdraw = _threaded(Client.withdraw)

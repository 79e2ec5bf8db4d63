"""What is pushed while somebody looks: a run as it goes on, and how deployments are doing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from fastapi import APIRouter, Depends, Request
from fastapi.sse import EventSourceResponse, ServerSentEvent
from starlette.concurrency import run_in_threadpool

from rayline.console.entering import console_of, signed_in
from rayline.console.plain import plain
from rayline.console.reading import RunId
from rayline.errors import RaylineError

router = APIRouter(prefix="/api", dependencies=[Depends(signed_in)])

LOOK_S = 1.0
"""Between two looks at a store; the driver writes to it every two seconds."""
_SHARE = 0.1
"""Of the time that is spent on reading a long run's curves."""
_DEPLOYMENTS_LOOK_S = 2.0


@router.get("/runs/{run_id}/live", response_class=EventSourceResponse)
async def follow_run(run_id: RunId, request: Request) -> AsyncIterator[ServerSentEvent]:
    """Events `run`, each with the whole run as it is, whenever something was recorded; `still`
    where nothing was, with the seconds since; `over` at its end."""
    sight = console_of(request).sight
    sign: object = None
    heard_s = time.monotonic()
    while True:
        began_s = time.monotonic()
        try:
            state = await run_in_threadpool(sight.state, run_id)
            if state.sign != sign:
                sign, heard_s = state.sign, began_s
                view = await run_in_threadpool(sight.run_view, state)
                document = {"view": view, "lines": sight.run_lines(state)}
                yield ServerSentEvent(event="run", data=plain(document))
            else:
                yield ServerSentEvent(event="still", data=round(began_s - heard_s, 1))
        except RaylineError as wrong:
            yield ServerSentEvent(event="wrong", data=f"{wrong.subject}: {wrong.problem}")
            await asyncio.sleep(LOOK_S)
            continue
        if state.summary.status != "running":
            yield ServerSentEvent(event="over", data=state.summary.status)
            return
        took_s = time.monotonic() - began_s
        await asyncio.sleep(max(LOOK_S, took_s / _SHARE))


@router.get("/deployments-live", response_class=EventSourceResponse)
async def follow_deployments(request: Request) -> AsyncIterator[ServerSentEvent]:
    """Events `deployments`, each with all of them, whenever something has changed."""
    sight = console_of(request).sight
    told: object = None
    while True:
        found = plain(await run_in_threadpool(sight.deployments))
        if found != told:
            told = found
            yield ServerSentEvent(event="deployments", data=found)
        await asyncio.sleep(_DEPLOYMENTS_LOOK_S)

"""Front: all that one gateway has at hand for a request, from the door to the record of it."""

from __future__ import annotations

import asyncio
import time
import uuid
from dataclasses import dataclass

from starlette.requests import Request

from rayline.serving.access.attempts import client_address
from rayline.serving.access.door import Door, Pass, Usage
from rayline.serving.access.quota import Lease
from rayline.serving.access.usage import Outcome
from rayline.serving.gateway.access_log import log_access, open_access_log
from rayline.serving.gateway.answered import Answered
from rayline.serving.gateway.fleet import Connections, Sync
from rayline.serving.gateway.journey import Journey
from rayline.serving.gateway.metrics import Meters
from rayline.serving.gateway.shadow import Shadow
from rayline.serving.gateway.splitting import can_split
from rayline.serving.gateway.tracing import Traces
from rayline.serving.requests import Asked, Entry, Route, check_request, read_json
from rayline.serving.wire import Ask
from rayline.spec import GatewaySpec

_BEARER = "bearer "


@dataclass(slots=True)
class Visit:
    """One request that was let in, until it is answered."""

    journey: Journey
    pass_: Pass
    request_id: str
    route: Route
    address: str
    traceparent: str | None


class Front:
    """Used within the gateway's event loop."""

    def __init__(
        self, spec: GatewaySpec, fleet: Connections, door: Door, traces: Traces | None = None
    ) -> None:
        self.fleet = fleet
        self.door = door
        self.meters = Meters()
        self.spec = spec
        self.leaving = False
        """Whether it is about to stop: said on /health first, so that load balancers go elsewhere
        while it answers on."""
        self._shadow = Shadow(fleet)
        self._traces = traces

    @staticmethod
    def open(spec: GatewaySpec, name: str, sync: Sync, lease: Lease | None = None) -> Front:
        """With the store of `spec`; `name` is one that no other gateway has. Raises ServingError
        where the store does not answer."""
        open_access_log()
        traces = None if spec.otlp_endpoint is None else Traces.to(spec.otlp_endpoint)
        door = Door.open(spec, gateway=name, lease=lease)
        return Front(spec, Connections(sync, name, spec), door, traces)

    async def keep(self) -> None:
        """Follow the director and the store, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.fleet.keep())
            group.create_task(self.door.run())

    async def close(self) -> None:
        """Write what is not written yet. Called after `keep` was cancelled."""
        await self.door.close()
        if self._traces is not None:
            await asyncio.to_thread(self._traces.close)

    async def look(self, request: Request, entry: Entry) -> None:
        """Raise RefusedError for who may not come to this path, before the body is read."""
        if entry.scope is not None:
            await self.door.look(_secret(request), self._address(request), entry.scope)

    async def enter(self, request: Request, entry: Entry, route: Route, body: bytes) -> Visit:
        """Check a request and let it in. Raises RefusedError."""
        limits = self.fleet.limits
        tree = read_json(body, limits)
        asked = check_request(route, tree, self.fleet.limits_of(tree.get("model")))
        self.fleet.check_served(asked.model)
        address, tokens = self._address(request), self._most_tokens(asked)
        pass_ = await self.door.enter(
            _secret(request), address, entry.scope or "inference", asked.model, tokens
        )
        ask = Ask(
            request_id=uuid.uuid4().hex,
            route=route,
            tree=asked.tree,
            traceparent=request.headers.get("traceparent"),
        )
        self._shadow.copy(ask, asked.model)
        splits = can_split(route, asked.tree, asked.sequences)
        prompt_tokens = asked.prompt.likely_tokens if splits else 0
        wanted = self.fleet.wanted(asked.model, asked.session, pass_.key, tokens, prompt_tokens)
        journey = Journey(ask, wanted, self.fleet)
        self.fleet.meter.begin(journey)
        self.meters.open_requests.labels(asked.model).inc()
        return Visit(journey, pass_, ask.request_id, route, address, ask.traceparent)

    def leave(self, visit: Visit, status: int) -> None:
        """Settle and record a request, however it ended. `status` is that of HTTP."""
        journey, usage = visit.journey, visit.journey.usage
        self.fleet.meter.end(journey)
        self.meters.open_requests.labels(journey.name).dec()
        version = None if journey.version is None else str(journey.version)
        outcome = _outcome(journey)
        one = Answered(
            request_id=visit.request_id,
            at_s=visit.pass_.at_s,
            route=visit.route,
            model=journey.name,
            version=version or "",
            key=visit.pass_.key.name,
            address=visit.address,
            status=status,
            outcome=outcome,
            prompt_tokens=usage.prompt_tokens,
            cached_tokens=usage.cached_tokens,
            completion_tokens=usage.completion_tokens,
            seconds=time.monotonic() - visit.pass_.began_s,
            first_s=journey.first_s,
            last_s=journey.last_s,
            engine_s=(usage.waited_ms + usage.computed_ms) / 1000,
            losses=journey.losses,
            prompt=journey.prompt,
            traceparent=visit.traceparent,
        )
        self.door.leave(visit.pass_, _row(one, outcome, version))
        self.meters.count(one)
        log_access(one)
        if self._traces is not None:
            self._traces.add(one)

    def _address(self, request: Request) -> str:
        peer = request.client.host if request.client else ""
        forwarded = request.headers.get("x-forwarded-for")
        return client_address(peer, forwarded, self.spec.trusted_proxies)

    def _most_tokens(self, asked: Asked) -> int:
        """What is held against a key's limits while the request is under way."""
        held = self.spec.held_answer_tokens
        answer = held if asked.max_tokens is None else min(asked.max_tokens, held)
        return asked.prompt.likely_tokens + answer * asked.sequences


def _secret(request: Request) -> str | None:
    """The bearer token."""
    header = request.headers.get("authorization", "")
    if header[: len(_BEARER)].lower() != _BEARER:
        return None
    return header[len(_BEARER) :].strip() or None


def _outcome(journey: Journey) -> Outcome:
    if journey.left:
        return "cut"
    if journey.refused:
        return "refused"
    return "failed" if journey.failed else "complete"


def _row(one: Answered, outcome: Outcome, version: str | None) -> Usage:
    return Usage(
        request_id=one.request_id,
        model=one.model,
        route=one.route,
        status=one.status,
        outcome=outcome,
        prompt_tokens=one.prompt_tokens,
        cached_tokens=one.cached_tokens,
        completion_tokens=one.completion_tokens,
        variant=version,
        ttft_ms=None if one.first_s is None else 1000 * one.first_s,
    )

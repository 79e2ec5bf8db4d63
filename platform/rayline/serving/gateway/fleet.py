"""The gateway's connections: to every replica that the director names, kept in step with it.

A request that no replica takes now waits (waiting.py), none for longer than hold_s.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from rayline.serving.access.keys import ANONYMOUS, ApiKey
from rayline.serving.director.fleet import (
    SYNC_PERIOD_S,
    Fleet,
    GatewayReport,
    ReplicaAddress,
    Served,
)
from rayline.serving.gateway import choosing
from rayline.serving.gateway.choosing import Candidate
from rayline.serving.gateway.measuring import Meter
from rayline.serving.gateway.waiting import WaitingRoom
from rayline.serving.requests import Refusal, RefusedError, unavailable, unknown_model
from rayline.serving.rollout.choosing import Draws, choose, copied, instead
from rayline.serving.wire import SILENCE_S, Caller, LostReplicaError
from rayline.spec import GatewaySpec, RequestLimits

logger = logging.getLogger(__name__)

Sync = Callable[[GatewayReport], Awaitable[Fleet]]
"""Asks the director."""


@dataclass(slots=True)
class Connected:
    """A replica that can be asked."""

    served: Served
    address: ReplicaAddress
    caller: Caller


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a request needs of the fleet."""

    model: str
    """Whose replicas."""
    affinity: str | None
    """Equal for requests that a common cache helps."""
    draw: float = 0.0
    """In [0, 1): which version gets it, where its session does not say."""
    version: int | None = None
    """Set once a version has answered a part: no other can go on with it."""
    avoid: frozenset[str] = frozenset()
    """Replicas that were lost with this request under way."""
    key: ApiKey = ANONYMOUS
    """Whose it is: where it has to wait, keys take turns."""
    tokens: int = 1
    """Most that it may take, prompt and answer together."""
    prompt_tokens: int = 0
    """Likely length of a prompt that another replica may compute; 0 where none may."""
    adapter: str | None = None
    """Only replicas that have loaded it can answer."""

    @property
    def name(self) -> str:
        """What the client asked for."""
        return self.adapter or self.model


class Connections:
    """Used within the gateway's event loop."""

    def __init__(self, sync: Sync, gateway: str, spec: GatewaySpec) -> None:
        self._sync = sync
        self._gateway = gateway
        self._spec = spec
        self._fleet = Fleet()
        self._known = False
        self.connected: dict[str, Connected] = {}
        """Replicas that can be asked, by their name."""
        self._prefill: dict[str, Connected] = {}
        """The same of those that compute prompts for them."""
        self.meter = Meter()
        self._draws = Draws(random.random())
        self._shadow_draws = Draws(random.random())
        self._waiting: dict[str, WaitingRoom] = {}

    @property
    def fleet(self) -> Fleet:
        """What is served, as the director said last."""
        return self._fleet

    @property
    def names(self) -> frozenset[str]:
        """Of every replica that it is connected to."""
        return frozenset((*self.connected, *self._prefill))

    @property
    def limits(self) -> RequestLimits:
        """What a body may be before it is known for which model: the widest of them."""
        found = [
            one.served.limits for offer in self._fleet.models.values() for one in offer.variants
        ]
        return max(found, key=lambda one: one.max_body_bytes, default=RequestLimits())

    def limits_of(self, model: object) -> RequestLimits:
        """What a request for `model` may ask."""
        offer = self._fleet.models.get(model) if isinstance(model, str) else None
        return RequestLimits() if offer is None else offer.shown.limits

    @property
    def ready(self) -> bool:
        """Whether a request that came now would be answered."""
        return any(
            one.served.model in self._fleet.models and not one.caller.leaving
            for one in self.connected.values()
        )

    async def keep(self) -> None:
        """Follow the director until cancelled. One that does not answer changes nothing: what is
        connected serves on."""
        loop = asyncio.get_running_loop()
        looked_s = loop.time()
        while True:
            felt = self.meter.take()
            try:
                async with asyncio.timeout(10 * SYNC_PERIOD_S):
                    report = GatewayReport(self._gateway, self._held(), felt)
                    self._follow(await self._sync(report))
            # Whatever it is, the fleet that is connected can still be asked.
            except Exception as wrong:  # noqa: BLE001
                self.meter.put_back(felt)
                logger.warning("the director does not answer: %s", type(wrong).__name__)
            await self._connect()
            self._check(loop.time(), looked_s)
            looked_s = loop.time()
            await asyncio.sleep(SYNC_PERIOD_S)

    def _check(self, now_s: float, looked_s: float) -> None:
        """Give up replicas that have fallen silent. Where this process, or its machine, was stopped
        itself, nobody could be heard: who speaks is heard until the next look."""
        if now_s - looked_s < SILENCE_S:
            for one in (*self.connected.values(), *self._prefill.values()):
                one.caller.check(now_s)

    def _follow(self, fleet: Fleet) -> None:
        before, self._fleet, self._known = self._fleet.models, fleet, True
        for name, offer in fleet.models.items():
            # A replica that has loaded an adapter is no new connection.
            if offer.adapter is not None and before.get(name) != offer:
                self.freed(offer.shown.model)

    def _held(self) -> dict[str, int]:
        return {model: len(waiting) for model, waiting in self._waiting.items() if waiting}

    async def _connect(self) -> None:
        """Connect to what is new. What is gone is dropped when its connection ends."""
        named = {
            address.replica: (variant.served, address)
            for offer in self._fleet.models.values()
            for variant in offer.variants
            for address in (*variant.replicas, *variant.prefill)
        }
        for replica, (served, address) in named.items():
            known = self._prefill if address.role == "prefill" else self.connected
            if replica in known:
                continue
            try:
                caller = await Caller.connect(address.host, address.port, address.secret)
            except LostReplicaError as wrong:
                logger.warning("replica %s cannot be reached: %s", replica, wrong)
                continue
            known[replica] = Connected(served, address, caller)
            caller.lost.add_done_callback(partial(self._drop, replica))
            self.freed(served.model)

    def _drop(self, replica: str, _: asyncio.Future[None]) -> None:
        self._prefill.pop(replica, None)
        gone = self.connected.pop(replica, None)
        if gone is not None:
            # Those that wait may have to be told that nobody is left.
            self.freed(gone.served.model)

    async def place(self, wanted: Wanted) -> Connected:
        """A replica that takes one more request now, waited for. Raises RefusedError where the
        model is not served, too many wait, or none came free in time."""
        loop = asyncio.get_running_loop()
        begun_s = loop.time()
        self.check_served(wanted.name)
        room = self._room(wanted.model)
        # Who comes while others wait waits behind them.
        found = None if len(room) else self._free(wanted)
        while found is None:
            left_s = begun_s + self._longest_hold_s(wanted.model) - loop.time()
            if left_s <= 0 or not await room.wait(wanted.key, wanted.tokens, left_s):
                raise RefusedError(self._busy(wanted.model))
            self.check_served(wanted.name)
            found = self._free(wanted)
            if found is not None:
                # There may be room for more than one.
                room.wake()
        return found

    def _room(self, model: str) -> WaitingRoom:
        if model not in self._waiting:
            self._waiting[model] = WaitingRoom(
                self._spec.max_queued, self._spec.max_waiting_per_key
            )
        return self._waiting[model]

    def wanted(
        self, name: str, affinity: str | None, key: ApiKey, tokens: int, prompt_tokens: int
    ) -> Wanted:
        """What a new request for `name` needs, of `key` and of so many tokens at most; see Wanted
        for `prompt_tokens`."""
        model, adapter = self._meant(name)
        draw = next(self._draws)
        return Wanted(
            model,
            affinity,
            draw,
            key=key,
            tokens=tokens,
            prompt_tokens=prompt_tokens,
            adapter=adapter,
        )

    def shadow(self, name: str) -> Wanted | None:
        """What a copy of a request needs, whose answer nobody waits for; None for most requests,
        and where it would have to wait."""
        offer = self._fleet.models.get(name)
        version = None if offer is None else copied(offer.weights, next(self._shadow_draws))
        model, adapter = self._meant(name)
        wanted = Wanted(model, None, version=version, adapter=adapter)
        return wanted if version is not None and self._free(wanted) is not None else None

    def _meant(self, name: str) -> tuple[str, str | None]:
        """The model and the adapter that a client means."""
        offer = self._fleet.models.get(name)
        if offer is None or offer.adapter is None:
            return name, None
        return offer.shown.model, name

    def _longest_hold_s(self, model: str) -> float:
        """Longer where a replica has to start first."""
        offer = self._fleet.models.get(model)
        if offer is None or offer.hold_s is None or self._has_replica(model):
            return self._spec.hold_s
        return max(self._spec.hold_s, offer.hold_s)

    def _has_replica(self, model: str) -> bool:
        return any(one.served.model == model for one in self.connected.values())

    def freed(self, model: str) -> None:
        """Called when a request has ended, or a replica has come or gone."""
        if model in self._waiting:
            self._waiting[model].wake()

    def _busy(self, model: str) -> Refusal:
        if self._has_replica(model):
            return self._room(model).refusal()
        return unavailable("No replica of the model is up. Try again later.")

    def check_served(self, model: str) -> None:
        """Raises RefusedError where there is no such model, or is none for much longer."""
        if model in self._fleet.leaving:
            raise RefusedError(unavailable("The model is being taken away."))
        if model not in self._fleet.models and self._known:
            raise RefusedError(unknown_model(model))

    def prefill(self, wanted: Wanted) -> Connected | None:
        """A replica that computes the prompt of such a request for the one that answers it; None
        where that one does so itself."""
        up = self._up(wanted, self._prefill)
        return self._chosen(
            wanted, [one for one in up if 0 < (one.served.split_from or 0) <= wanted.prompt_tokens]
        )

    def _free(self, wanted: Wanted) -> Connected | None:
        return self._chosen(wanted, self._up(wanted, self.connected))

    def _up(self, wanted: Wanted, known: Mapping[str, Connected]) -> list[Connected]:
        return [
            one
            for replica, one in known.items()
            if one.served.model == wanted.model
            and not one.caller.leaving
            and replica not in wanted.avoid
            and self._has_adapter(replica, wanted.adapter)
        ]

    def _chosen(self, wanted: Wanted, up: Sequence[Connected]) -> Connected | None:
        version = wanted.version
        if version is None:
            version = self._version(wanted, {one.served.version for one in up})
        same = {one.address.replica: one for one in up if one.served.version == version}
        chosen = choosing.choose(
            [
                Candidate(name, one.caller.open_requests, one.address.max_ongoing_requests)
                for name, one in same.items()
            ],
            wanted.affinity,
        )
        return None if chosen is None else same[chosen.replica]

    def _has_adapter(self, replica: str, adapter: str | None) -> bool:
        if adapter is None:
            return True
        offer = self._fleet.models.get(adapter)
        variants = () if offer is None else offer.variants
        having = (at for one in variants for at in (*one.replicas, *one.prefill))
        return any(at.replica == replica for at in having)

    def _version(self, wanted: Wanted, up: set[int]) -> int | None:
        """The version that answers: the one whose share it falls into, or another that answers
        where none of its replicas is up."""
        offer = self._fleet.models.get(wanted.name)
        if offer is None:
            return max(up, default=None)
        version = choose(offer.weights, wanted.affinity, wanted.draw)
        return version if version in up else instead(offer.weights, version)

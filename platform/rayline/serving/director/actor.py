"""The director as a Serve deployment: one actor, which holds no CPU.

It hears replicas and gateways, and once a second lets what follows from that follow: rollout/ and
scaling/ decide, served_model.py applies, and what they ask of Serve is carried out here. All that
it must not forget is in the store; the rest it hears again within a second of its start.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from rayline.errors import RaylineError, ServingError
from rayline.serving.access.allowances import Ask, Grant, Settled
from rayline.serving.access.door import allowances_of
from rayline.serving.access.store import Store
from rayline.serving.adapters import check_names_free
from rayline.serving.director import applications
from rayline.serving.director.blueprint import Blueprint, Event
from rayline.serving.director.examining import examine
from rayline.serving.director.fleet import Fleet, GatewayReport, ReplicaReport
from rayline.serving.director.hearsay import Hearsay
from rayline.serving.director.offering import known
from rayline.serving.director.registry import tell_registry
from rayline.serving.director.release_store import ReleaseStore
from rayline.serving.director.served_model import AppState, Heard, ServedModel, specs_beside
from rayline.serving.director.status import ModelStatus, model_status
from rayline.serving.director.surroundings import Surroundings, surroundings
from rayline.serving.rollout import transitions
from rayline.serving.rollout.gates import Scores
from rayline.serving.rollout.release import Release
from rayline.serving.rollout.transitions import Change, Effect, Start, TellRegistry
from rayline.serving.rollout.version import Asked
from rayline.spec import AdapterSpec, GatewaySpec, ServeSpec

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

TICK_S = 1.0
_LOOK_S = 5.0
"""How often Serve is asked how its applications are while nothing changes."""
_ANSWER_TIMEOUT_S = 10.0
_CALLERS = 8
"""Calls to Serve that may be under way at once."""
_EVENTS_SHOWN = 20
_EXAMINE_AGAIN_S = 10.0


class Director:
    """Made by Ray Serve."""

    # Serve awaits a constructor that is a coroutine.
    async def __init__(self, gateway: GatewaySpec) -> None:  # type: ignore[misc]
        self._gateway = gateway
        self._store = ReleaseStore(Store(gateway.store))
        self._allowances = allowances_of(gateway)
        self._models = {one.release.model: one for one in _remembered(self._store)}
        self._hearsay = Hearsay()
        self._apps: dict[str, AppState] | None = None
        self._around = Surroundings()
        self._looked_at_s = -_LOOK_S
        self._looking: asyncio.Future[tuple[dict[str, AppState], Surroundings]] | None = None
        self._callers = ThreadPoolExecutor(_CALLERS, "serve")
        self._busy: set[tuple[str, int]] = set()
        self._unsaved: set[str] = set()
        self._examined: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._writing = asyncio.Lock()
        self._publishing = asyncio.Lock()
        # What the store tells of a cluster that has ended is found out before anybody asks.
        await self._tick()
        self._ticking = asyncio.create_task(self._tick_for_ever())

    async def report(self, report: ReplicaReport) -> tuple[AdapterSpec, ...] | None:
        """Called by every replica, once a second: the adapters that it is to have. None where the
        version is not the director's."""
        self._hearsay.hear_replica(report)
        served = self._models.get(report.served.model)
        blueprint = None if served is None else served.blueprints.get(report.served.version)
        return None if blueprint is None else blueprint.spec.engine.adapters

    async def leave(self, replica: str) -> None:
        """Called by a replica that takes no more requests."""
        self._hearsay.hear_leaving(replica)

    async def sync(self, report: GatewayReport) -> Fleet:
        """Called by every gateway, twice a second."""
        self._hearsay.hear_gateway(report, self._models)
        offered = {name: known(served) for name, served in self._models.items()}
        return self._hearsay.answer(report.gateway, offered)

    async def is_told(self, model: str) -> bool:
        """Whether every gateway knows the model; False while none has asked."""
        return self._hearsay.is_told(model)

    async def lease(
        self, gateway: str, asks: Sequence[Ask], settled: Sequence[Settled]
    ) -> Sequence[Grant]:
        """Slices of keys' allowances for one of several gateways, which between them give no more
        than there is."""
        return await asyncio.to_thread(self._allowances.lease, gateway, asks, settled)

    async def gateway(self) -> GatewaySpec:
        """Where the cluster's gateway listens, and how."""
        return self._gateway

    async def models(self) -> list[str]:
        """The models that are served, or are about to be."""
        return sorted(
            name
            for name, served in self._models.items()
            if any(version.holds_replicas for version in served.release.versions)
        )

    async def begin(self, asked: Asked, blueprint: Blueprint) -> int:
        """A deployment; the number of the version that answers for it. Raises ServingError where
        another version is taking over."""
        name = blueprint.spec.name
        check_names_free(blueprint.spec, specs_beside(name, self._models))
        served = self._models.setdefault(name, ServedModel(Release(name), {}))
        before = served.release
        change, number = served.begin(asked, blueprint, time.time())
        try:
            await self._carry_out(served, change, {number: blueprint})
        except ServingError:
            # A version that nobody could bring back is not begun.
            served.release = before
            raise
        return number

    async def spec(self, model: str) -> ServeSpec:
        """Of the version that answers, or is about to. Raises ServingError."""
        return self._served(model).current.spec

    async def publish(self, model: str, adapter: AdapterSpec) -> None:
        """Answer to an adapter's name too; one of that name is replaced. Raises SpecError,
        ServingError."""
        async with self._publishing:
            served = self._served(model)
            new = served.with_adapter(adapter, specs_beside(model, self._models))
            said = f"adapter {adapter.name} is published: {adapter.source}"
            await self._keep(served, Event(time.time(), said), new)
            served.blueprints |= new

    async def withdraw(self, model: str, name: str) -> None:
        """Answer no new request to an adapter's name. Raises SpecError, ServingError."""
        async with self._publishing:
            served = self._served(model)
            new = served.without_adapter(name)
            await self._keep(served, Event(time.time(), f"adapter {name} is withdrawn"), new)
            served.blueprints |= new

    async def aim(self, model: str, percent: float) -> None:
        """A person wants the version that takes over to get this share. Raises ServingError."""
        served = self._served(model)
        await self._apply(served, transitions.aim(served.release, percent, time.time()))

    async def promote(self, model: str) -> None:
        """A person wants it to become the stable one. Raises ServingError."""
        served = self._served(model)
        await self._apply(served, transitions.promote(served.release))

    async def roll_back(self, model: str, to: int | None, reason: str) -> None:
        """Back to the version before, or to `to`. Raises ServingError."""
        served = self._served(model)
        change = transitions.roll_back(served.release, time.time(), to=to, reason=reason)
        await self._apply(served, change)

    async def stop(self, model: str) -> None:
        """Take a model away. Raises ServingError where it is not served."""
        served = self._served(model)
        await self._apply(served, transitions.stop(served.release, time.time()))

    async def drain_s(self, model: str) -> float:
        """How long the answers of a model may take to end. Raises ServingError."""
        blueprints = self._served(model).blueprints.values()
        return max((blueprint.spec.drain_s for blueprint in blueprints), default=0.0)

    async def status(self, model: str) -> ModelStatus:
        """How a model is doing. Raises ServingError where it never was served."""
        served = self._served(model)
        try:
            events = await asyncio.to_thread(self._store.events, model, _EVENTS_SHOWN)
        except ServingError as wrong:
            logger.warning("%s", wrong)
            events = ()
        heard = self._hearsay
        return model_status(
            served, heard.reports(model), heard.prefill(model), heard.held(model), events
        )

    async def check_health(self) -> None:
        """Raise where it has stopped. Called by Serve's controller."""
        if self._ticking.done():
            raise ServingError("director", "has stopped") from self._ticking.exception()

    def _served(self, model: str) -> ServedModel:
        if model not in self._models:
            raise ServingError(
                "name",
                "no such deployment on this cluster",
                value=model,
                allowed=", ".join(sorted(self._models)) or "none is deployed",
            )
        return self._models[model]

    async def _tick_for_ever(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            try:
                await self._tick()
            # One model's trouble, or Serve's, must not end the others' rollouts and scaling.
            except Exception:
                logger.exception("a second was lost")

    async def _tick(self) -> None:
        busy = set(self._busy)
        await self._look()
        # What was begun or ended while Serve was asked may be missing in its answer.
        busy |= self._busy
        now_s = time.monotonic()
        self._hearsay.forget()
        for name, served in list(self._models.items()):
            heard = Heard(
                unix_s=time.time(),
                clock_s=now_s,
                loads=self._hearsay.loads(name),
                held=self._hearsay.held(name),
                apps=self._apps,
                busy=frozenset(number for model, number in busy if model == name),
            )
            changes, replicas = served.tick(heard, self._around.room)
            for change in changes:
                await self._carry_out(served, change)
            for number, count in replicas.items():
                self._spawn(self._scale(served, number, count))
            if served.is_unexamined and name not in self._examined:
                self._examined.add(name)
                self._spawn(self._examine(served))
        for name in list(self._unsaved):
            await self._keep(self._models[name], None)

    async def _look(self) -> None:
        """Ask Serve and Ray how things are: every second while something changes."""
        self._apps = None
        now_s = time.monotonic()
        settled = not self._busy and all(served.is_settled for served in self._models.values())
        still_asked = self._looking is not None and not self._looking.done()
        if still_asked or (settled and now_s - self._looked_at_s < _LOOK_S):
            return
        self._looked_at_s = now_s
        self._looking = asyncio.ensure_future(self._of_serve(_seen))
        try:
            async with asyncio.timeout(_ANSWER_TIMEOUT_S):
                self._apps, self._around = await asyncio.shield(self._looking)
        # Ray's control store or Serve's controller is away: shares and gates go on without.
        except Exception as wrong:  # noqa: BLE001
            logger.warning("Serve does not say how its applications are: %r", wrong)

    async def _of_serve(self, call: Callable[..., Result], *arguments: object) -> Result:
        """Call what blocks, for ever where Ray's control store is away: in threads of its own, so
        that whoever else needs one finds one."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._callers, partial(call, *arguments))

    async def _apply(self, served: ServedModel, change: Change) -> None:
        served.apply(change)
        await self._carry_out(served, change)

    async def _carry_out(
        self, served: ServedModel, change: Change, new: Mapping[int, Blueprint] | None = None
    ) -> None:
        """Keep a change that was applied, and do what it asks for."""
        if change.said:
            logger.info("%s: %s", served.release.model, change.said)
        if change.said or change.effects or new:
            await self._keep(served, Event(time.time(), change.said) if change.said else None, new)
        for effect in change.effects:
            if not isinstance(effect, TellRegistry):
                self._busy.add((served.release.model, effect.number))
            self._spawn(self._do(served, effect))

    async def _keep(
        self, served: ServedModel, event: Event | None, new: Mapping[int, Blueprint] | None = None
    ) -> None:
        """Write the release as it is then. A store that is away must not stop a rollback: it is
        written once it is back. Raises ServingError for a new version alone."""
        name = served.release.model
        async with self._writing:
            try:
                await asyncio.to_thread(self._store.keep, served.release, event, new)
                self._unsaved.discard(name)
            except ServingError as wrong:
                if new:
                    raise
                self._unsaved.add(name)
                logger.warning("%s is kept in memory only: %s", name, wrong)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        # The loop itself keeps no task alive.
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _do(self, served: ServedModel, effect: Effect) -> None:
        model, number = served.release.model, effect.number
        version = served.release.version(number)
        try:
            if isinstance(effect, TellRegistry):
                blueprint = served.blueprints[number]
                await self._of_serve(tell_registry, version, blueprint.spec, effect.stable)
            elif isinstance(effect, Start):
                up = len(self._hearsay.loads(model).get(served.release.stable or 0, ()))
                replicas = served.first_replicas(number, up)
                blueprint = served.blueprints[number]
                await self._of_serve(applications.start, version.app, blueprint, number, replicas)
            else:
                await self._of_serve(applications.stop, version.app)
        # Whatever it is, the other versions serve on, and whoever asks is told.
        except Exception as wrong:
            logger.exception("%s version %d: %s did not work", model, number, effect)
            reason = wrong.problem if isinstance(wrong, RaylineError) else f"{wrong}"
            if isinstance(effect, Start):
                change = transitions.failed(served.release, number, reason, time.time())
                await self._apply(served, change)
        finally:
            self._busy.discard((model, number))

    async def _examine(self, served: ServedModel) -> None:
        """Ask the version that takes over, and the stable one, the evaluation set."""
        release = served.release
        try:
            scores = {}
            for number in (release.canary, release.stable):
                address = self._hearsay.address(release.model, number)
                if number is not None and address is not None:
                    questions = served.blueprints[release.canary or 0].questions
                    scores[number] = await examine(address, release.model, questions)
            if served.release.canary == release.canary and release.canary in scores:
                stable = scores.get(release.stable or 0)
                served.scores = Scores(scores[release.canary], stable)
        # It is tried again, and has no share until it worked.
        except Exception as wrong:  # noqa: BLE001
            logger.warning("%s could not be asked its evaluation set: %s", release.model, wrong)
            await asyncio.sleep(_EXAMINE_AGAIN_S)
        finally:
            self._examined.discard(release.model)

    async def _scale(self, served: ServedModel, number: int, replicas: int) -> None:
        app = served.release.version(number).app
        try:
            await self._of_serve(applications.scale, app, replicas)
            logger.info("%s: %d replicas", app, replicas)
        # It is decided anew every second.
        except Exception as wrong:  # noqa: BLE001
            logger.warning("%s could not be given %d replicas: %s", app, replicas, wrong)
            served.targets.pop(number, None)


def _seen() -> tuple[dict[str, AppState], Surroundings]:
    return applications.states(), surroundings()


def _remembered(store: ReleaseStore) -> Iterator[ServedModel]:
    """What was served when the director was asked last."""
    for release in store.releases():
        blueprints = store.blueprints(release)
        lost = {one.number for one in release.versions if one.number not in blueprints}
        if any(release.version(number).holds_replicas for number in lost):
            # Its replicas serve on as they are; it is deployed anew to be directed again.
            logger.error("%s is served by a version that cannot be read", release.model)
            continue
        yield ServedModel(transitions.forget(release, lost), blueprints)

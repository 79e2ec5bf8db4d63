"""One served model: its release, and what follows from what was heard of its versions.

No Ray and no store in here. `tick` is given what there is and gives back what happened and how many
replicas each version shall have; the director carries that out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from rayline.errors import ServingError
from rayline.serving.adapters import (
    check_names_free,
    check_publishable,
    published,
    with_adapters,
    withdrawn,
)
from rayline.serving.director.blueprint import Blueprint
from rayline.serving.director.watch import Watch
from rayline.serving.rollout import choosing, transitions
from rayline.serving.rollout.advancing import advance
from rayline.serving.rollout.allotting import allot, bounded
from rayline.serving.rollout.gates import Scores, Verdict, judge, reference
from rayline.serving.rollout.measured import Measured
from rayline.serving.rollout.release import Release
from rayline.serving.rollout.transitions import Change
from rayline.serving.rollout.version import Asked
from rayline.serving.scaling.deciding import Decision, Room, decide, history_s
from rayline.serving.wire import Load
from rayline.spec import AdapterSpec, RolloutSpec, ServeSpec

MIN_DRAIN_S = 3.0
"""A version that nobody needs is kept for so long: gateways hear of a change within half a second,
what they have sent by then is seen within another, and a rollback within it costs nothing."""


@dataclass(frozen=True, slots=True)
class AppState:
    """How Serve says that an application is doing."""

    state: Literal["starting", "up", "failed"]
    why: str = ""
    """The last words of what failed."""
    replicas: int = 0
    """That it has or is starting."""


@dataclass(frozen=True, slots=True)
class Heard:
    """All that is known of a model in one second."""

    unix_s: float
    clock_s: float
    """Monotonic."""
    loads: Mapping[int, Sequence[Load]]
    """Of each version's replicas that are up."""
    held: int = 0
    """Requests that gateways hold because no replica takes them."""
    apps: Mapping[str, AppState] | None = None
    """By name, those that exist; None where Serve did not answer."""
    busy: frozenset[int] = frozenset()
    """Versions whose application is being started or taken away just now."""


RoomFor = Callable[[Blueprint, int], Room | None]
"""How many more replicas of a version the cluster holds, beside so many that are still starting;
None where it grows by itself."""


@dataclass(slots=True)
class ServedModel:
    """Used by the director alone."""

    release: Release
    blueprints: dict[int, Blueprint]
    """Of every version that the release knows."""
    targets: dict[int, int] = field(default_factory=dict)
    """Replicas that Serve was told to keep, by version."""
    watches: dict[int, Watch] = field(default_factory=dict)
    decisions: dict[int, Decision] = field(default_factory=dict)
    """Why each version has as many replicas as it has."""
    verdict: Verdict | None = None
    """On the version that takes over."""
    scores: Scores | None = None
    """Of the version that takes over, on its evaluation set."""
    _before: Measured = field(default_factory=Measured)
    _draining_s: dict[int, float] = field(default_factory=dict)

    def begin(self, asked: Asked, blueprint: Blueprint, unix_s: float) -> tuple[Change, int]:
        """A deployment: what happens, and the version that answers for it. One that is the same
        takes over how it is scaled and rolled out. Raises ServingError."""
        keep = blueprint.spec.rollout.keep_versions
        change = transitions.begin(self.release, asked, unix_s, keep=keep)
        holder = change.release.canary or change.release.stable
        number = change.release.version(holder).number
        self.blueprints[number] = blueprint
        self.apply(change)
        return change, number

    @property
    def current(self) -> Blueprint:
        """What the version is made of that answers, or is about to. Raises ServingError where
        none is."""
        number = self.release.stable or self.release.canary
        if number is None:
            raise ServingError("name", "is not served now", value=self.release.model)
        return self.blueprints[number]

    def with_adapter(
        self, adapter: AdapterSpec, others: Sequence[ServeSpec]
    ) -> dict[int, Blueprint]:
        """What its versions that answer are made of with one adapter more, or with this one for the
        one of its name. `others` are served beside it. Raises SpecError."""

        def more(spec: ServeSpec) -> ServeSpec:
            now = spec.engine.adapters
            check_publishable(adapter, spec.name, spec.engine, [one.name for one in now])
            return with_adapters(spec, published(now, adapter))

        changed = self._changed(more)
        for blueprint in changed.values():
            check_names_free(blueprint.spec, others)
        return changed

    def without_adapter(self, name: str) -> dict[int, Blueprint]:
        """The same with one adapter less. Raises SpecError where there is no such adapter."""
        return self._changed(
            lambda spec: with_adapters(spec, withdrawn(spec.engine.adapters, name))
        )

    def _changed(self, change: Callable[[ServeSpec], ServeSpec]) -> dict[int, Blueprint]:
        live = (self.release.stable, self.release.canary)
        return {
            number: replace(blueprint, spec=change(blueprint.spec))
            for number, blueprint in self.blueprints.items()
            if number in live
        }

    def apply(self, change: Change) -> None:
        """Make a change the present state."""
        before, self.release = self.release, change.release
        if (before.canary, before.percent) == (self.release.canary, self.release.percent):
            return
        if before.canary != self.release.canary:
            self.verdict = self.scores = None
            self._before = Measured()
        if before.stable is not None:
            self._before = reference(self.watch(before.stable).measured, self._before, self.rollout)
        for watch in self.watches.values():
            watch.begin_anew()

    @property
    def rollout(self) -> RolloutSpec:
        """The rules of the version that takes over, or of the one that serves."""
        number = self.release.canary or self.release.stable
        return RolloutSpec() if number is None else self.blueprints[number].spec.rollout

    @property
    def weights(self) -> choosing.Weights:
        """What gateways have to know of it."""
        return choosing.weights(self.release, self.rollout)

    @property
    def is_unexamined(self) -> bool:
        """Whether the version that takes over has yet to be asked its evaluation set."""
        canary = self.release.canary
        if canary is None or self.scores is not None or self.release.at_once:
            return False
        return bool(self.blueprints[canary].questions) and self.release.version(canary).is_up

    @property
    def is_settled(self) -> bool:
        """Whether nothing of it starts, changes or goes."""
        release = self.release
        if release.canary is not None or any(one.state == "draining" for one in release.versions):
            return False
        if release.stable is None:
            return True
        moments = self.watch(release.stable).moments
        return bool(moments) and moments[-1].up == self.targets.get(release.stable)

    def watch(self, number: int) -> Watch:
        """What is heard of a version."""
        return self.watches.setdefault(number, Watch())

    def first_replicas(self, number: int, stable_up: int) -> int:
        """How many replicas an application starts with. Called before it is started."""
        most = self.blueprints[number].spec.scale.max_replicas
        self.release = transitions.sized(self.release, min(stable_up, most))
        allotted = allot(self.release, self.rollout, number, 0)
        least = bounded(self.blueprints[number].spec.scale, allotted).min_replicas
        self.targets[number] = max(1, least)
        return self.targets[number]

    def tick(self, heard: Heard, room_for: RoomFor) -> tuple[list[Change], dict[int, int]]:
        """What happened this second, applied already, and the versions whose number of replicas has
        changed."""
        self._note(heard)
        changes = []
        for step in (self._lost, self._came_up, self._drained, self._advanced):
            for change in step(heard):
                self.apply(change)
                changes.append(change)
        return changes, self._scaled(heard, room_for)

    def _note(self, heard: Heard) -> None:
        takes = self.release.stable or self.release.canary
        for version in self.release.versions:
            number = version.number
            if not version.holds_replicas:
                self._forget(number)
                continue
            app = (heard.apps or {}).get(version.app)
            if app is not None and number not in heard.busy:
                # Only a director that was started anew does not know.
                self.targets.setdefault(number, app.replicas)
            self.watch(number).tick(
                heard.clock_s,
                heard.loads.get(number, ()),
                heard.held if number == takes else 0,
                history_s(self.blueprints[number].spec.scale),
            )

    def _forget(self, number: int) -> None:
        self.watches.pop(number, None)
        self.targets.pop(number, None)
        self.decisions.pop(number, None)
        self._draining_s.pop(number, None)

    def _lost(self, heard: Heard) -> Iterator[Change]:
        """Versions whose application does not exist any more."""
        if heard.apps is None:
            return
        for number in [version.number for version in self.release.versions]:
            version = self.release.version(number)
            gone = number not in heard.busy and version.app not in heard.apps
            if gone and version.holds_replicas:
                yield transitions.lost(self.release, number, heard.unix_s)

    def _came_up(self, heard: Heard) -> Iterator[Change]:
        canary = self.release.canary
        if canary is None or canary in heard.busy:
            return
        version = self.release.version(canary)
        app = (heard.apps or {}).get(version.app)
        up = bool(heard.loads.get(canary))
        waited_s = heard.unix_s - self.release.changed_at_s
        limit_s = self.blueprints[canary].spec.ready_timeout_s
        if version.state == "starting" and up:
            yield transitions.ready(self.release, canary, heard.unix_s)
        elif app is not None and app.state == "failed" and not up:
            yield transitions.failed(self.release, canary, app.why, heard.unix_s)
        elif version.state == "starting" and waited_s > limit_s:
            reason = f"it has generated no token within ready_timeout_s {limit_s:g}"
            yield transitions.failed(self.release, canary, reason, heard.unix_s)

    def _drained(self, heard: Heard) -> Iterator[Change]:
        for version in self.release.versions:
            number = version.number
            if version.state != "draining":
                self._draining_s.pop(number, None)
                continue
            since_s = heard.clock_s - self._draining_s.setdefault(number, heard.clock_s)
            loads = heard.loads.get(number, ())
            done = all(load.waiting + load.running == 0 for load in loads)
            limit_s = max(MIN_DRAIN_S, self.blueprints[number].spec.drain_s)
            if (done and since_s >= MIN_DRAIN_S) or since_s >= limit_s:
                yield transitions.drained(self.release, number)

    def _advanced(self, heard: Heard) -> Iterator[Change]:
        canary = self.release.canary
        if canary is None or not self.release.version(canary).is_up:
            return
        watch = self.watch(canary)
        stable = self.release.stable
        beside = Measured() if stable is None else self.watch(stable).measured
        self.verdict = judge(
            reference(beside, self._before, self.rollout),
            watch.measured,
            self.rollout,
            unanswered_ms=watch.unanswered_ms(heard.clock_s),
            scores=self.scores,
        )
        up = len(heard.loads.get(canary, ()))
        change = advance(self.release, self.rollout, self.verdict, up, heard.unix_s)
        if change is not None:
            yield change

    def _scaled(self, heard: Heard, room_for: RoomFor) -> dict[int, int]:
        changed = {}
        for number in (self.release.stable, self.release.canary):
            if number is None or number in heard.busy or number not in self.targets:
                continue
            decision = self.decisions[number] = self._decision(number, heard, room_for)
            if decision.target != self.targets[number]:
                changed[number] = self.targets[number] = decision.target
        return changed

    def _decision(self, number: int, heard: Heard, room_for: RoomFor) -> Decision:
        spec = self.blueprints[number].spec
        canary_up = len(heard.loads.get(self.release.canary or 0, ()))
        scale = bounded(spec.scale, allot(self.release, self.rollout, number, canary_up))
        up = len(heard.loads.get(number, ()))
        starting = max(0, self.targets[number] - up)
        moments = tuple(self.watch(number).moments)
        wanted = decide(heard.clock_s, moments, scale, up=up, starting=starting)
        if wanted.target <= up + starting:
            return wanted
        room = room_for(self.blueprints[number], starting)
        if room is None:
            return wanted
        return decide(heard.clock_s, moments, scale, up=up, starting=starting, room=room)


def specs_beside(model: str, models: Mapping[str, ServedModel]) -> list[ServeSpec]:
    """Of every other model, what its versions that answer are made of."""
    return [
        served.blueprints[number].spec
        for name, served in models.items()
        for number in (served.release.stable, served.release.canary)
        if name != model and number is not None
    ]

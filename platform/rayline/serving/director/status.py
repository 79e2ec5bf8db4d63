"""What `rayline status NAME` shows, as values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rayline.serving.director.blueprint import Event
from rayline.serving.director.fleet import ReplicaReport
from rayline.serving.director.served_model import ServedModel
from rayline.serving.rollout.gates import Verdict
from rayline.serving.rollout.measured import Measured
from rayline.serving.rollout.release import Release
from rayline.serving.rollout.version import State, Version
from rayline.serving.scaling.deciding import Decision
from rayline.spec import AdapterSpec
from rayline.spec.rollout import WHOLE_PERCENT


@dataclass(frozen=True, slots=True)
class Felt:
    """What clients felt of a version since the shares last changed."""

    requests: int
    errors: int
    ttft_p50_ms: float | None
    """None where nothing was measured."""
    ttft_p95_ms: float | None
    tpot_p50_ms: float | None


@dataclass(frozen=True, slots=True)
class AdapterStatus:
    """One adapter of a version."""

    name: str
    source: str
    """Where it lies."""
    up: int
    """Replicas of the version that answer with it."""
    reason: str
    """Why one of the others does not; empty where nothing is wrong."""


@dataclass(frozen=True, slots=True)
class VersionStatus:
    """One version of a served model."""

    number: int
    state: State
    reason: str
    """Why it is in that state; empty where that was asked for."""
    model: str
    """The reference that it was deployed with."""
    registry_version: int | None
    """Which version of the registered model that was; None for a model that is none."""
    run_id: str | None
    """The run that trained it; None where that is not known."""
    revision: str
    """Fingerprint of all that its replicas are made of."""
    app: str
    """Its Ray Serve application."""
    created_at_s: float
    """Seconds since 1970."""
    percent: float
    """Share of the requests that it gets, 0 to 100."""
    up: int
    """Replicas that answer."""
    wanted: int
    """Replicas that there shall be."""
    decision: Decision | None
    """Why so many; None where it holds none."""
    felt: Felt | None
    """None where it holds no replica."""
    prefill: int | None = None
    """Replicas that compute prompts for them; None where none shall (engine.split)."""
    adapters: tuple[AdapterStatus, ...] = ()
    """What else it answers to."""


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """How a served model is doing."""

    model: str
    stable: int | None
    canary: int | None
    goal: float | None
    """The share that a person asked for, in percent."""
    verdict: Verdict | None
    """On the canary; None where there is none."""
    held: int
    """Requests that gateways hold because no replica takes them."""
    versions: tuple[VersionStatus, ...]
    """Newest first."""
    events: tuple[Event, ...]
    """What happened last, oldest first."""

    @property
    def up(self) -> int:
        """Replicas of the versions that get requests."""
        live = (self.stable, self.canary)
        return sum(version.up for version in self.versions if version.number in live)

    def version(self, number: int) -> VersionStatus:
        """The version of that number; it must be one of them."""
        return next(version for version in self.versions if version.number == number)


def model_status(
    served: ServedModel,
    reports: Mapping[int, Sequence[ReplicaReport]],
    prefill: Mapping[int, int],
    held: int,
    events: Sequence[Event],
) -> ModelStatus:
    """The status of a model; `reports`: of the replicas that answer, by version; `prefill`: how
    many compute prompts for them."""
    release = served.release
    return ModelStatus(
        model=release.model,
        stable=release.stable,
        canary=release.canary,
        goal=release.goal,
        verdict=served.verdict,
        held=held,
        versions=tuple(
            _version_status(
                served,
                version,
                reports.get(version.number, ()),
                prefill.get(version.number, 0),
            )
            for version in reversed(release.versions)
        ),
        events=tuple(events),
    )


def _version_status(
    served: ServedModel, version: Version, reports: Sequence[ReplicaReport], prefill: int
) -> VersionStatus:
    registered = version.asked.registered
    watch = served.watches.get(version.number)
    spec = served.blueprints[version.number].spec
    return VersionStatus(
        number=version.number,
        state=version.state,
        reason=version.reason,
        model=version.asked.model,
        registry_version=None if registered is None else registered.version,
        run_id=None if registered is None else registered.run_id,
        revision=version.asked.fingerprint,
        app=version.app,
        created_at_s=version.created_at_s,
        percent=share_of(served.release, version.number),
        up=len(reports),
        wanted=served.targets.get(version.number, 0),
        decision=served.decisions.get(version.number),
        felt=None if watch is None else _felt(watch.measured),
        prefill=None if spec.engine.split is None else prefill,
        adapters=tuple(_adapter_status(adapter, reports) for adapter in spec.engine.adapters),
    )


def _adapter_status(adapter: AdapterSpec, reports: Sequence[ReplicaReport]) -> AdapterStatus:
    failures = [one.failures[adapter.name] for one in reports if adapter.name in one.failures]
    return AdapterStatus(
        name=adapter.name,
        source=str(adapter.source),
        up=sum(adapter.name in one.adapters for one in reports),
        reason=failures[0] if failures else "",
    )


def share_of(release: Release, number: int) -> float:
    """The share of the requests that a version gets, 0 to 100."""
    if number == release.canary:
        return release.percent
    return WHOLE_PERCENT - release.percent if number == release.stable else 0.0


def _felt(measured: Measured) -> Felt:
    return Felt(
        requests=measured.requests,
        errors=measured.errors,
        ttft_p50_ms=measured.ttft_ms.percentile(50),
        ttft_p95_ms=measured.ttft_ms.percentile(95),
        tpot_p50_ms=measured.tpot_ms.percentile(50),
    )

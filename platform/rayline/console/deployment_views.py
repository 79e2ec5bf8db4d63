"""Served models as they are shown: versions, shares, what clients feel, why so many replicas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from rayline.serving import ModelStatus
from rayline.serving.director.status import VersionStatus
from rayline.serving.rollout.choosing import Weights, choose

_EVENTS = 12
_TRIES = 20_000
"""Sessions that are tried to find one that goes to a version: a share of 0.1 % takes a thousand."""


@dataclass(frozen=True, slots=True)
class SignalView:
    """One signal of the autoscaling, as it is now."""

    signal: str
    value: float
    threshold: float
    wants: int


@dataclass(frozen=True, slots=True)
class VersionView:
    """One version."""

    number: int
    role: str
    """stable, canary, or empty."""
    state: str
    reason: str
    model: str
    run_id: str | None
    percent: float
    up: int
    wanted: int
    requests: int | None
    errors: int | None
    ttft_p50_ms: float | None
    ttft_p95_ms: float | None
    tpot_p50_ms: float | None
    scaling: str
    """How many replicas there shall be, why, and why not otherwise; empty where it holds none."""
    signals: tuple[SignalView, ...]
    adapters: tuple[str, ...]
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Said:
    """Something that happened to a served model."""

    at: datetime
    text: str


@dataclass(frozen=True, slots=True)
class DeploymentView:
    """One served model."""

    name: str
    stable: int | None
    canary: int | None
    percent: float
    """What the canary gets."""
    goal: float | None
    gates: str
    """The verdict on the canary; empty where there is none."""
    held: int
    up: int
    versions: tuple[VersionView, ...]
    """Newest first."""
    events: tuple[Said, ...]
    """Newest first."""


def deployment_view(status: ModelStatus) -> DeploymentView:
    """One served model."""
    versions = tuple(_version(status, version) for version in status.versions)
    verdict = status.verdict
    return DeploymentView(
        name=status.model,
        stable=status.stable,
        canary=status.canary,
        percent=next((one.percent for one in versions if one.number == status.canary), 0.0),
        goal=status.goal,
        gates=("" if verdict is None else f"{verdict.action.replace('_', ' ')}: {verdict.reason}"),
        held=status.held,
        up=status.up,
        versions=versions,
        events=tuple(
            Said(datetime.fromtimestamp(event.at_s, UTC), event.said)
            for event in reversed(status.events[-_EVENTS:])
        ),
    )


def _version(status: ModelStatus, version: VersionStatus) -> VersionView:
    felt, decision = version.felt, version.decision
    roles = {status.stable: "stable", status.canary: "canary"}
    registered = (
        "" if version.registry_version is None else f" (version {version.registry_version})"
    )
    scaling = ""
    if decision is not None:
        rest = f"; {decision.why_not}" if decision.why_not else ""
        replicas = "1 replica" if decision.target == 1 else f"{decision.target} replicas"
        scaling = f"{replicas}: {decision.why}{rest}"
    return VersionView(
        number=version.number,
        role=roles.get(version.number, ""),
        state=version.state,
        reason=version.reason,
        model=f"{version.model}{registered}",
        run_id=version.run_id,
        percent=version.percent,
        up=version.up,
        wanted=version.wanted,
        requests=None if felt is None else felt.requests,
        errors=None if felt is None else felt.errors,
        ttft_p50_ms=None if felt is None else felt.ttft_p50_ms,
        ttft_p95_ms=None if felt is None else felt.ttft_p95_ms,
        tpot_p50_ms=None if felt is None else felt.tpot_p50_ms,
        scaling=scaling,
        signals=tuple(
            SignalView(one.signal, one.value, one.threshold, one.wants)
            for one in (() if decision is None else decision.readings)
        ),
        adapters=tuple(
            f"{one.name} ({one.source}) on {one.up} of {version.up} replicas"
            for one in version.adapters
        ),
        created_at=datetime.fromtimestamp(version.created_at_s, UTC),
    )


@dataclass(frozen=True, slots=True)
class ChatTarget:
    """Something that the playground can ask."""

    label: str
    model: str
    session: str | None = None
    """The conversation's name that leads to one version: shares are by session, so a name that
    falls on the wanted side keeps to it. None lets the gateway choose."""
    version: int | None = None


def chat_targets(models: Sequence[str], served: Sequence[DeploymentView]) -> list[ChatTarget]:
    """Every model that the gateway names, and, of those that are being rolled out, both versions.
    A version without any share cannot be asked by itself."""
    targets = [ChatTarget(model, model) for model in models]
    for one in served:
        if one.name not in models or one.canary is None or one.stable is None:
            continue
        weights = Weights(one.name, one.stable, one.canary, one.percent)
        for role, number in (("stable", one.stable), ("canary", one.canary)):
            session = session_of(weights, number)
            if session is not None:
                label = f"{one.name}, version {number} ({role})"
                targets.append(ChatTarget(label, one.name, session, number))
    return targets


def session_of(weights: Weights, version: int) -> str | None:
    """A session that goes to this version at these shares; None where none does."""
    names = (f"console-{number}" for number in range(_TRIES))
    return next((name for name in names if choose(weights, name, 0.0) == version), None)

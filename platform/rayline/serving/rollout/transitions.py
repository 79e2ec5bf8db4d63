"""What may happen to a Release: functions to the next one and to the effects that carry it out.

Effects are what lies outside the Release: applications and the registry. Gateways hear of every
changed Release, so a share needs no effect of its own. Called by the director, which passes
`now_s`, seconds since 1970.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

from rayline.errors import ServingError
from rayline.serving.rollout.release import Release
from rayline.serving.rollout.version import Asked, State, Version, app_name
from rayline.spec.rollout import WHOLE_PERCENT


@dataclass(frozen=True, slots=True)
class Start:
    """Start the version's application; `ready` or `failed` follows."""

    number: int


@dataclass(frozen=True, slots=True)
class Stop:
    """Take the version's application away."""

    number: int


@dataclass(frozen=True, slots=True)
class TellRegistry:
    """Tell the model registry that this version's model is up, and move the alias to it where it is
    the stable one."""

    number: int
    stable: bool


Effect = Start | Stop | TellRegistry


@dataclass(frozen=True, slots=True)
class Change:
    """What a transition leads to."""

    release: Release
    effects: tuple[Effect, ...] = ()
    """To be carried out in this order."""
    said: str = ""
    """One line for whoever asks what happened; empty where nothing did."""


def begin(release: Release, asked: Asked, now_s: float, *, keep: int) -> Change:
    """A deployment: the next version starts, unless just this one serves or takes over already.
    Of stopped versions the newest `keep` stay known. Raises ServingError while another one is
    taking over."""
    if release.canary is not None:
        canary = release.version(release.canary)
        if canary.asked.fingerprint == asked.fingerprint:
            return Change(release)
        raise ServingError(
            release.model,
            f"version {canary.number} is taking over; one can at a time",
            value=canary.state,
            fix=f"`rayline promote {release.model}` or `rayline rollback {release.model}` first",
        )
    stable = release.stable
    if stable is not None and release.version(stable).asked.fingerprint == asked.fingerprint:
        return Change(release)
    number = max((version.number for version in release.versions), default=0) + 1
    version = Version(number, asked, app_name(release.model, number), now_s)
    idle = [version.number for version in release.versions if not version.holds_replicas]
    begun = forget(release, idle[:-keep]).with_version(version)
    return Change(
        replace(begun, canary=number, changed_at_s=now_s),
        (Start(number),),
        f"version {number} starts: {asked.model}",
    )


def sized(release: Release, replicas: int) -> Release:
    """While a version starts, `replicas` of the stable one carry all requests; no more are counted
    than the version that starts may have."""
    return replace(release, replicas=max(1, replicas))


def ready(release: Release, number: int, now_s: float) -> Change:
    """The version that takes over is up. The first version gets everything at once; another waits
    for its share."""
    version = release.version(number)
    if number != release.canary or version.state != "starting":
        return Change(release)
    up = replace(
        release.with_version(replace(version, state="ready", reason="")), changed_at_s=now_s
    )
    if release.stable is None:
        return finish(up, now_s)
    return Change(up, _told(version, stable=False), f"version {number} is up")


def failed(release: Release, number: int, reason: str, now_s: float) -> Change:
    """The version did not come up, or died as a whole while it took over: what was stable goes on
    alone."""
    version = release.version(number)
    if number != release.canary:
        return Change(release)
    rest = "" if release.stable is None else f"; version {release.stable} goes on serving"
    return Change(
        _alone(release.with_version(replace(version, state="failed", reason=reason)), now_s),
        (Stop(number),),
        f"version {number} failed: {reason}{rest}",
    )


def aim(release: Release, percent: float, now_s: float) -> Change:
    """A person wants the canary to get this share, 0 to 100, and to stay there. A lower one holds
    from now; to a higher one it goes as its replicas come up. Raises ServingError where no version
    is taking over."""
    canary = _canary(release)
    aimed = replace(release, goal=percent, at_once=False)
    said = f"version {canary.number} is to get {percent:g} % of the requests"
    if percent >= release.percent:
        return Change(aimed, said=said)
    return replace(share(aimed, percent, now_s), said=said)


def promote(release: Release) -> Change:
    """A person wants the canary to become the stable version. Raises ServingError where no version
    is taking over."""
    canary = _canary(release)
    return Change(
        replace(release, goal=WHOLE_PERCENT, at_once=True),
        said=f"version {canary.number} is to get everything",
    )


def share(release: Release, percent: float, now_s: float) -> Change:
    """The canary, which is up, gets this share of the requests now, 0 to 100."""
    canary = _canary(release)
    state: State = "serving" if percent else "ready"
    changed = replace(
        release.with_version(replace(canary, state=state)), percent=percent, changed_at_s=now_s
    )
    return Change(changed, said=f"version {canary.number} gets {percent:g} % of the requests")


def finish(release: Release, now_s: float) -> Change:
    """The canary, which is up, becomes the stable version, and the one before it drains."""
    canary = _canary(release)
    return _take_over(release, canary, now_s, f"version {canary.number} is the stable one")


def roll_back(
    release: Release, now_s: float, *, to: int | None = None, reason: str = "asked for"
) -> Change:
    """Back to the stable version where another is taking over, else to the one before it, or to
    `to`. A version that is still up takes over at once; one that was stopped starts first, and what
    serves goes on until it is up. Raises ServingError where there is nothing to go back to."""
    canary = release.canary
    if canary is not None and to in (None, release.stable):
        return _drop(release, release.version(canary), reason, now_s)
    target = _target(release, to)
    why = f"back to version {target.number}: {reason}"
    if canary is not None and target.number != canary:
        raise ServingError(
            release.model,
            f"version {canary} is taking over; one can at a time",
            value=to,
            fix=f"`rayline rollback {release.model}` first",
        )
    if target.number == canary:
        return promote(release)
    if target.is_up:
        return _take_over(release, target, now_s, why)
    starting = release.with_version(replace(target, state="starting", reason=""))
    return Change(
        replace(
            starting,
            canary=target.number,
            goal=WHOLE_PERCENT,
            at_once=True,
            changed_at_s=now_s,
        ),
        (Start(target.number),),
        why,
    )


def drained(release: Release, number: int) -> Change:
    """The version has finished what it had, or drain_s has passed."""
    version = release.version(number)
    if version.state != "draining":
        return Change(release)
    return Change(
        release.with_version(replace(version, state="stopped")),
        (Stop(number),),
        f"version {number} has drained and stops",
    )


def lost(release: Release, number: int, now_s: float) -> Change:
    """The version's application is gone, though nobody took it away here: its cluster ended, or it
    was deleted past the director."""
    version = release.version(number)
    if not version.holds_replicas:
        return Change(release)
    gone = release.with_version(replace(version, state="stopped", reason="its cluster ended"))
    if number == release.canary:
        gone = _alone(gone, now_s)
    if number == release.stable:
        gone = replace(gone, stable=None)
    return Change(gone, said=f"version {number} is gone: its application does not exist any more")


def stop(release: Release, now_s: float) -> Change:
    """Take the model away: every version drains; one that has not come up yet stops."""
    effects: list[Effect] = []
    gone = _alone(release, now_s)
    for version in release.versions:
        if version.is_up:
            gone = gone.with_version(replace(version, state="draining", reason="taken away"))
        elif version.state == "starting":
            gone = gone.with_version(replace(version, state="stopped", reason="taken away"))
            effects.append(Stop(version.number))
    return Change(replace(gone, stable=None), tuple(effects), "taken away")


def _take_over(release: Release, version: Version, now_s: float, said: str) -> Change:
    """`version`, which is up, gets everything; the stable one before it drains."""
    taken = release.with_version(replace(version, state="serving", reason=""))
    earlier = release.earlier
    if version.number in earlier:
        earlier = earlier[: earlier.index(version.number)]
    elif release.stable is not None:
        earlier = (*earlier, release.stable)
    if release.stable is not None:
        before = release.version(release.stable)
        reason = f"version {version.number} has taken over"
        taken = taken.with_version(replace(before, state="draining", reason=reason))
    alone = replace(_alone(taken, now_s), stable=version.number, earlier=earlier)
    return Change(alone, _told(version, stable=True), said)


def _told(version: Version, *, stable: bool) -> tuple[Effect, ...]:
    """What the registry has to hear, where the version's model is from there."""
    return () if version.asked.registered is None else (TellRegistry(version.number, stable),)


def _drop(release: Release, canary: Version, reason: str, now_s: float) -> Change:
    """The canary gives up what it has."""
    said = f"version {canary.number} is rolled back: {reason}"
    why = f"rolled back: {reason}"
    if canary.is_up:
        return Change(
            _alone(release.with_version(replace(canary, state="draining", reason=why)), now_s),
            said=said,
        )
    stopped = release.with_version(replace(canary, state="stopped", reason=why))
    return Change(_alone(stopped, now_s), (Stop(canary.number),), said)


def _alone(release: Release, now_s: float) -> Release:
    """Nobody is taking over."""
    return replace(release, canary=None, percent=0.0, goal=None, at_once=False, changed_at_s=now_s)


def _canary(release: Release) -> Version:
    if release.canary is None:
        raise ServingError(
            release.model,
            "no version is taking over",
            value=f"version {release.stable} is stable",
            fix="deploy one whose rollout.steps are below 100, such as --set 'rollout.steps=[10]'",
        )
    return release.version(release.canary)


def _target(release: Release, to: int | None) -> Version:
    """The version that a rollback goes to."""
    if to is None and not release.earlier:
        raise ServingError(
            release.model,
            "there is no earlier version to go back to",
            value=f"version {release.stable} is stable",
        )
    version = release.version(release.earlier[-1] if to is None else to)
    if version.number == release.stable:
        raise ServingError(
            release.model, f"version {version.number} is the stable one already", value=to
        )
    return version


def forget(release: Release, gone: Collection[int]) -> Release:
    """Without these versions, which hold nothing: nobody can go back to them any more."""
    return replace(
        release,
        versions=tuple(one for one in release.versions if one.number not in gone),
        earlier=tuple(number for number in release.earlier if number not in gone),
    )

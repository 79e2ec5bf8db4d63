"""Which version answers a request. Called by gateways, for each request.

A share is a threshold: every session has a place in [0, 1) that never changes while the same canary
takes over, and those below the share go to it. So a session stays with its version, and a raised
share moves only the sessions that it newly takes in.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b

from rayline.serving.rollout.release import Release
from rayline.spec.rollout import WHOLE_PERCENT, RolloutSpec

_GOLDEN = 0.6180339887498949
_PLACES = 2**64


@dataclass(frozen=True, slots=True)
class Weights:
    """What a gateway knows of a model's versions."""

    model: str
    stable: int | None
    canary: int | None = None
    percent: float = 0.0
    """Share of the canary, 0 to 100."""
    shadow_percent: float = 0.0
    """Share of requests that the canary gets a copy of, 0 to 100."""
    sticky: bool = True


class Draws:
    """Numbers in [0, 1) that come out evenly: of any thousand in a row, the share below a threshold
    differs from it by less than half a point, where independent ones would differ by two now and
    then. The golden ratio's multiples (Weyl's sequence). One to a gateway, begun at `first`, which
    should be a random number."""

    def __init__(self, first: float) -> None:
        self._place = first % 1.0

    def __next__(self) -> float:
        self._place = (self._place + _GOLDEN) % 1.0
        return self._place


def weights(release: Release, rollout: RolloutSpec) -> Weights:
    """What gateways have to know of `release`; `rollout` is its canary's, or its stable version's
    where there is no canary."""
    canary = release.canary
    if canary is None or not release.version(canary).is_up:
        return Weights(release.model, release.stable, sticky=rollout.sticky)
    shadowed = not release.percent and release.goal is None
    return Weights(
        model=release.model,
        stable=release.stable,
        canary=canary,
        percent=release.percent,
        shadow_percent=rollout.shadow_percent if shadowed else 0.0,
        sticky=rollout.sticky,
    )


def choose(known: Weights, session: str | None, draw: float) -> int | None:
    """The version that answers. `session` names a conversation, None where the request names none;
    `draw` is the gateway's next number in [0, 1). None where nothing is served."""
    if known.canary is None or known.percent <= 0:
        return known.stable
    if known.stable is None:
        return known.canary
    place = draw
    if session is not None and known.sticky:
        place = _place(f"{known.model}\0{known.canary}\0{session}")
    return known.canary if place * WHOLE_PERCENT < known.percent else known.stable


def instead(known: Weights, number: int | None) -> int | None:
    """Who answers where none of that version's replicas is up: availability goes before shares.
    None where there is nobody else."""
    if number == known.canary:
        return known.stable
    return known.canary if known.percent > 0 else None


def copied(known: Weights, draw: float) -> int | None:
    """The version that gets a copy of a request whose answer nobody waits for; None for most."""
    return known.canary if draw * WHOLE_PERCENT < known.shadow_percent else None


def _place(text: str) -> float:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest()) / _PLACES

"""How many replicas a version gets: what was felt lately in, a decision with its reasons out.

Replicas are added where the load asked for more at every moment of upscale_delay_s, and taken away
where it asked for fewer at every moment of downscale_delay_s, against targets a fifth lower. So
load that comes and goes within that delay changes nothing, and no steady load lies both above what
another replica is started for and below what it is stopped for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rayline.serving.scaling.moment import Moment
from rayline.serving.scaling.signals import Reading, readings, strongest
from rayline.spec.scale import ScaleSpec

EASE = 0.8
"""Of its target, what a signal has to stay below for a replica to go."""


@dataclass(frozen=True, slots=True)
class Room:
    """How many more replicas the cluster can hold now."""

    replicas: int
    why: str
    """What is missing for another one, such as "no node has 4 CPU free"."""


@dataclass(frozen=True, slots=True)
class Decision:
    """How many replicas there shall be, and why so many."""

    target: int
    signal: str
    """The signal that decided."""
    value: float
    threshold: float
    why: str
    why_not: str = ""
    """Why it is not what the load asks for just now; empty where it is."""
    readings: tuple[Reading, ...] = ()
    """Every signal as it is now."""


def history_s(scale: ScaleSpec) -> float:
    """How far back `decide` looks at most."""
    idle_s = scale.idle_s if scale.min_replicas == 0 else 0.0
    return max(scale.upscale_delay_s, scale.downscale_delay_s, idle_s)


def decide(
    now_s: float,
    moments: Sequence[Moment],
    scale: ScaleSpec,
    *,
    up: int,
    starting: int = 0,
    room: Room | None = None,
) -> Decision:
    """The number of replicas that a version shall have. Called by the director, once a second.

    `moments`: one a second, oldest first, the last of now; `up` and `starting` replicas there are.
    `room` is None where the cluster grows by itself.
    """
    have = up + starting
    if not moments:
        target, limit = _limited(have, scale, have, room)
        return Decision(target, "", 0.0, 0.0, "nothing was measured yet", limit)
    wish = _wish(now_s, moments, scale, have)
    target, limit = _limited(wish.replicas, scale, have, room)
    return Decision(
        target=target,
        signal=wish.reading.signal,
        value=wish.reading.value,
        threshold=wish.reading.threshold,
        why=f"{wish.reading} asks for {wish.reading.wants}",
        why_not=limit or wish.delayed,
        readings=readings(moments[-1], scale),
    )


@dataclass(frozen=True, slots=True)
class _Wish:
    """What the load asks for, before any limit."""

    replicas: int
    reading: Reading
    delayed: str = ""
    """What it asks for just now, and how long that has to last."""


def _wish(now_s: float, moments: Sequence[Moment], scale: ScaleSpec, have: int) -> _Wish:
    now = strongest(moments[-1], scale)
    if have == 0:
        # Whoever asks is held until a replica is up: nothing is gained by a delay.
        return _Wish(now.wants, now)
    recent = _lately(now_s, moments, scale.upscale_delay_s)
    rise = min((strongest(one, scale) for one in recent), key=_wants, default=None)
    if rise is not None and rise.wants > have:
        return _Wish(
            rise.wants, rise, _delayed(now, rise.wants, "upscale_delay_s", scale.upscale_delay_s)
        )
    if now.wants > have:
        return _Wish(have, now, _delayed(now, have, "upscale_delay_s", scale.upscale_delay_s))
    if scale.min_replicas == 0 and have == 1 and moments[-1].asked == 0:
        # The last one goes once the model is idle.
        idle = _is_idle(now_s, moments, scale)
        later = "" if idle else f"nobody asks, not yet throughout idle_s {scale.idle_s:g}"
        return _Wish(0 if idle else 1, now, later)
    eased = strongest(moments[-1], scale, EASE)
    past = _lately(now_s, moments, scale.downscale_delay_s)
    kept = max((strongest(one, scale, EASE) for one in past), key=_wants, default=None)
    if kept is None or kept.wants >= have:
        return _Wish(
            have, eased, _delayed(eased, have, "downscale_delay_s", scale.downscale_delay_s)
        )
    least = max(1, kept.wants)
    return _Wish(least, kept, _delayed(eased, least, "downscale_delay_s", scale.downscale_delay_s))


def _lately(now_s: float, moments: Sequence[Moment], span_s: float) -> Sequence[Moment]:
    """The moments of the last `span_s`; none where they do not reach that far back."""
    if moments[0].at_s > now_s - span_s:
        return ()
    return [one for one in moments if one.at_s >= now_s - span_s] or moments[-1:]


def _is_idle(now_s: float, moments: Sequence[Moment], scale: ScaleSpec) -> bool:
    """Whether nobody has asked for idle_s."""
    past = _lately(now_s, moments, scale.idle_s)
    return bool(past) and all(one.asked == 0 for one in past)


def _wants(reading: Reading) -> int:
    return reading.wants


def _delayed(now: Reading, replicas: int, delay: str, delay_s: float) -> str:
    """Why there are not as many as the load asks for just now."""
    wants = max(1, now.wants)
    if wants == replicas:
        return ""
    return f"{now} asks for {wants}, not yet throughout {delay} {delay_s:g}"


def _limited(wanted: int, scale: ScaleSpec, have: int, room: Room | None) -> tuple[int, str]:
    """As many as may be and can be, and what is in the way of others."""
    target, limit = wanted, ""
    if wanted > scale.max_replicas:
        target, limit = scale.max_replicas, f"max_replicas is {scale.max_replicas}"
    elif wanted < scale.min_replicas:
        target, limit = scale.min_replicas, f"min_replicas is {scale.min_replicas}"
    if room is not None and target > have + room.replicas:
        target, limit = have + room.replicas, room.why
    return target, limit and f"{wanted} asked for; {limit}"

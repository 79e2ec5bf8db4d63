"""What each signal asks for, alone: a moment in, numbers of replicas out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from rayline.serving.scaling.moment import Moment
from rayline.spec.scale import ScaleSpec

_MOST_GROWTH = 2.0
"""A pressure says that there are too few replicas, not how many are missing: it asks for twice as
many at most, and again once those are up."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One signal in one moment."""

    signal: str
    value: float
    threshold: float
    wants: int
    """Replicas that this signal alone asks for."""

    def __str__(self) -> str:
        return f"{self.signal} {_short(self.value)} of {_short(self.threshold)}"


def readings(moment: Moment, scale: ScaleSpec, ease: float = 1.0) -> tuple[Reading, ...]:
    """Every signal that the spec has a target for. `ease` scales all targets: what replicas are
    kept for has to be further below a target than what they are started for is above it."""
    return tuple(_readings(moment, scale, ease))


@lru_cache(maxsize=8192)  # every moment is looked at again for as long as the delays are
def strongest(moment: Moment, scale: ScaleSpec, ease: float = 1.0) -> Reading:
    """The signal that asks for most replicas."""
    return max(_readings(moment, scale, ease), key=lambda reading: reading.wants)


def _readings(moment: Moment, scale: ScaleSpec, ease: float) -> Iterator[Reading]:
    up = moment.up
    target = scale.target_ongoing_requests * ease
    each = moment.asked / max(1, up)
    yield Reading("requests per replica", each, target, math.ceil(moment.asked / target))
    # Shares of what there is: at 120 % of a target, 1.2 times as many replicas come to 100 % of it
    # (the rule of Kubernetes' HorizontalPodAutoscaler).
    pressures = [
        ("waiting per replica", moment.waiting / max(1, up), scale.waiting_per_replica),
        ("KV cache use", moment.kv_use, scale.kv_use),
    ]
    for signal, value, limit in pressures:
        if limit is not None:
            yield _pressure(signal, value, limit * ease, moment)
    # A time has a floor that no replica takes away, so below its target it asks for nothing.
    times = [
        ("TTFT ms", moment.ttft_ms, scale.ttft_ms),
        ("TPOT ms", moment.tpot_ms, scale.tpot_ms),
    ]
    for signal, time_ms, limit in times:
        if limit is None or time_ms is None:
            continue
        reading = _pressure(signal, time_ms, limit * ease, moment)
        yield reading if time_ms > reading.threshold else Reading(signal, time_ms, limit * ease, 0)


def _pressure(signal: str, value: float, limit: float, moment: Moment) -> Reading:
    wanted = math.ceil(moment.up * min(value / limit, _MOST_GROWTH))
    # More replicas than requests help nobody.
    return Reading(signal, value, limit, min(wanted, max(1, moment.asked)))


def _short(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"

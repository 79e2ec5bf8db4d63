"""Moment: how busy all replicas of a version were in one second."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from rayline.serving.wire import Load


@dataclass(frozen=True, slots=True)
class Moment:
    """One version in one second."""

    at_s: float
    """On the clock that `decide` is asked on."""
    up: int
    """Replicas that are up."""
    asked: int
    """Requests that are computed, wait in an engine, or are held by a gateway."""
    waiting: int
    """Those that wait in an engine."""
    held: int
    """Those that a gateway holds because no replica takes them."""
    kv_use: float
    """Mean over the replicas, 0 to 1."""
    ttft_ms: float | None = None
    """Time to the first token that nine of ten requests of the last seconds had at most; None where
    nothing was measured."""
    tpot_ms: float | None = None
    """The same of the time per further token."""


def moment(
    at_s: float,
    loads: Collection[Load],
    *,
    held: int = 0,
    ttft_ms: float | None = None,
    tpot_ms: float | None = None,
) -> Moment:
    """All replicas of a version that are up, and what gateways measured of it, together."""
    waiting = sum(load.waiting for load in loads)
    return Moment(
        at_s=at_s,
        up=len(loads),
        asked=waiting + sum(load.running for load in loads) + held,
        waiting=waiting,
        held=held,
        kv_use=sum(load.kv_use for load in loads) / max(1, len(loads)),
        ttft_ms=ttft_ms,
        tpot_ms=tpot_ms,
    )

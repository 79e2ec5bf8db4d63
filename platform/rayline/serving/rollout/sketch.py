"""Sketch: a distribution of times in a few hundred counters, which add up across gateways.

Every bucket is 2 % wider than the one below it, so whatever is read back is off by 1 % at most,
however many times went in (Masson, Rim and Lee, DDSketch, VLDB 2019).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

_GROWTH = 1.02
_LOG_GROWTH = math.log(_GROWTH)
_SMALLEST = 1e-3
"""Times below it count as it."""


class Sketch:
    """Times in milliseconds, without their order. Only `add` changes one."""

    __slots__ = ("_buckets", "count")

    def __init__(self, times_ms: Iterable[float] = ()) -> None:
        self._buckets: dict[int, int] = {}
        self.count = 0
        for time_ms in times_ms:
            self.add(time_ms)

    def add(self, time_ms: float) -> None:
        """Count one time. Called by gateways, for each request."""
        bucket = math.ceil(math.log(max(time_ms, _SMALLEST)) / _LOG_GROWTH)
        self._buckets[bucket] = self._buckets.get(bucket, 0) + 1
        self.count += 1

    def __add__(self, other: Sketch) -> Sketch:
        """Both together."""
        both = Sketch()
        both._buckets = dict(self._buckets)
        for bucket, times in other._buckets.items():
            both._buckets[bucket] = both._buckets.get(bucket, 0) + times
        both.count = self.count + other.count
        return both

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sketch) and self._buckets == other._buckets

    def __reduce__(self) -> tuple[object, tuple[Mapping[int, int]]]:
        return _from_buckets, (self._buckets,)

    def ranked(self, rank: int) -> float:
        """The `rank`-th smallest time, in ms: 0 below the first, infinite above the last."""
        if rank < 1:
            return 0.0
        if rank > self.count:
            return math.inf
        passed = 0
        for bucket in sorted(self._buckets):
            passed += self._buckets[bucket]
            if passed >= rank:
                return _middle(bucket)
        return math.inf

    def percentile(self, percent: float) -> float | None:
        """The time that `percent` of them do not exceed, in ms; None where there are none."""
        if not self.count:
            return None
        return self.ranked(max(1, math.ceil(self.count * percent / 100)))


def _middle(bucket: int) -> float:
    """The value that is nowhere in the bucket more than 1 % away."""
    return 2 * _GROWTH**bucket / (1 + _GROWTH)


def _from_buckets(buckets: Mapping[int, int]) -> Sketch:
    sketch = Sketch()
    sketch._buckets = dict(buckets)
    sketch.count = sum(buckets.values())
    return sketch

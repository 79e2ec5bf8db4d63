"""Two curves of one metric, compared step by step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

WINDOW_STEPS = 10
"""How many shared steps a difference has to hold for, on average, to count."""
SIGMAS = 4.0
"""How far beyond the noise of such a mean it has to be."""
_MAD_TO_SIGMA = 1.4826
"""Of a normal distribution: its standard deviation over its median absolute deviation."""
_HIGHER_IS_BETTER = ("tokens_per_s", "mfu")


@dataclass(frozen=True, slots=True)
class CurveDiff:
    """One metric of two runs, a and b."""

    metric: str
    steps: int
    """Steps that both have."""
    last_a: float
    last_b: float
    """At the last step of each run."""
    best_a: float | None
    best_b: float | None
    """Smallest, or for speeds largest, of each run's finite values; None where it has none."""
    area: float | None
    """Mean of b - a over the shared steps; None where there are none."""
    noise: float
    """Standard deviation of b - a that the runs' own scatter explains."""
    parted_at: int | None
    """First step from which on b - a is, over WINDOW_STEPS shared steps (fewer at the end), more
    than noise; None where it nowhere is."""


def compare_curves(metric: str, a: Mapping[int, float], b: Mapping[int, float]) -> CurveDiff:
    """Compare two curves, step to value, neither empty. Values that are not finite are different
    from all that is finite, and equal to one another.

    The scatter of a curve is estimated from its second differences, in which a trend hardly shows:
    their median absolute deviation over sqrt(6), as for independent errors (e.g. Gasser, Sroka and
    Jennen-Steinmetz 1986). A curve that repeats exactly has none, and any difference counts.
    """
    shared = sorted(a.keys() & b.keys())
    differences = [_difference(a[step], b[step]) for step in shared]
    noise = math.hypot(scatter([a[s] for s in sorted(a)]), scatter([b[s] for s in sorted(b)]))
    finite = [value for value in differences if math.isfinite(value)]
    return CurveDiff(
        metric=metric,
        steps=len(shared),
        last_a=a[max(a)],
        last_b=b[max(b)],
        best_a=best(metric, list(a.values())),
        best_b=best(metric, list(b.values())),
        area=fmean(finite) if finite else None,
        noise=noise,
        parted_at=first_parted(shared, differences, noise),
    )


def scatter(values: Sequence[float]) -> float:
    """Standard deviation of the errors around a smooth curve; 0 for fewer than five points."""
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) < 5:
        return 0.0
    seconds = [
        finite[place - 1] - 2 * finite[place] + finite[place + 1]
        for place in range(1, len(finite) - 1)
    ]
    middle = median(seconds)
    return _MAD_TO_SIGMA * median(abs(one - middle) for one in seconds) / math.sqrt(6)


def first_parted(steps: Sequence[int], differences: Sequence[float], noise: float) -> int | None:
    """The first step from which on the mean of the next WINDOW_STEPS differences (fewer at the end)
    is more than SIGMAS of their noise, and the difference at that step points the same way."""
    for place, step in enumerate(steps):
        window = differences[place : place + WINDOW_STEPS]
        here = differences[place]
        if not math.isfinite(here):
            return step
        finite = [value for value in window if math.isfinite(value)]
        mean = fmean(finite)
        # Sums of the same numbers in another order differ by less.
        if abs(mean) > SIGMAS * noise / math.sqrt(len(finite)) + 1e-12 and here * mean > 0:
            return step
    return None


def best(metric: str, values: Sequence[float]) -> float | None:
    """The best of them that is finite; None where none is."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return None
    return max(finite) if metric.startswith(_HIGHER_IS_BETTER) else min(finite)


def _difference(a: float, b: float) -> float:
    if math.isfinite(a) and math.isfinite(b):
        return b - a
    same = a == b or (math.isnan(a) and math.isnan(b))
    return 0.0 if same else math.inf

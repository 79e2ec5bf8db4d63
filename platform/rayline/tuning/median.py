"""The median stopping rule (Golovin et al. 2017, section 3.2.2). Costs: smaller is better."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, median


def median_keeps(
    own: Mapping[int, float], others: Sequence[Mapping[int, float]], step: int, min_trials: int
) -> bool:
    """Whether a trial goes on: its best cost up to `step` is no worse than the median of the
    running means of the others that came to that step. Mappings are step to cost."""
    means = [
        fmean(cost for at, cost in other.items() if at <= step) for other in others if step in other
    ]
    if len(means) < min_trials:
        return True
    costs = [cost for at, cost in own.items() if at <= step and not math.isnan(cost)]
    return bool(costs) and min(costs) <= median(means)

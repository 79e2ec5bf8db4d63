"""Successive halving, asynchronous: at each rung only the best of those that came so far go on.

The stopping variant of ASHA (Li et al. 2020, section 3.3): nobody waits for anybody, so a trial is
compared with those that reached the rung before it. HyperBand (Li et al. 2018) here is several such
halvings, which begin at later and later rungs, each with its share of the trials. Costs are
compared: smaller is better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence


def rungs(
    grace_steps: int, reduction_factor: int, longest_steps: int, bracket: int = 0
) -> list[int]:
    """Steps at which trials of this bracket are compared, below the longest trial's last one."""
    found = []
    step = grace_steps * reduction_factor**bracket
    while step < longest_steps:
        found.append(step)
        step *= reduction_factor
    return found


def keeps(cost: float, others: Sequence[float], reduction_factor: int) -> bool:
    """Whether a trial of this cost goes on, `others` being those of the trials that came to the
    rung before: while they are fewer than `reduction_factor`, only the best does."""
    if not math.isfinite(cost):
        return False
    better = sum(other < cost for other in others)
    return better < max(1, (len(others) + 1) // reduction_factor)


def bracket_shares(grace_steps: int, reduction_factor: int, longest_steps: int) -> list[float]:
    """Share of the trials that each bracket of HyperBand takes, the one that stops earliest first;
    the last one stops none. All brackets get about the same steps (Li et al. 2018, algorithm 1)."""
    most = len(rungs(grace_steps, reduction_factor, longest_steps))
    sizes = [(most + 1) / (s + 1) * reduction_factor**s for s in range(most, -1, -1)]
    return [size / sum(sizes) for size in sizes]


def brackets(trials: int, shares: Sequence[float]) -> list[int]:
    """The bracket of each trial, by number: after any of them, each bracket has its share to within
    one or so."""
    counts = [0] * len(shares)
    chosen = []
    for number in range(trials):
        lacking = [
            share * (number + 1) - count for share, count in zip(shares, counts, strict=True)
        ]
        chosen.append(lacking.index(max(lacking)))
        counts[chosen[-1]] += 1
    return chosen

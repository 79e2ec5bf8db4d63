"""Bounds that hold however often one looks: where a percentile or a rate certainly lies.

A canary is looked at every second, and a test made for one look would cry wolf sooner or later.
These bounds are confidence sequences: the chance that the true value is ever outside of them, over
all looks together, is at most `wrong`. They ask nothing of the distribution of the times. (Howard
and Ramdas, Sequential estimation of quantiles, Bernoulli 28(3), 2022, with Robbins' mixture of 1970
by a beta prior; Lindon, Sanden and Shirikian, Rapid Regression Detection in Software Deployments
through Sequential Testing, KDD 2022, use them for canaries.)

They do take requests to be independent of each other. Those of a burst are not, which is why gates
leave room between equal and too slow.
"""

from __future__ import annotations

import math
from functools import lru_cache

_PRIOR_WEIGHT = 5.0
"""Of the prior, in samples: narrowest bounds at about a hundred (Howard and Ramdas, section
3.5)."""
_HALVINGS = 40


@lru_cache(maxsize=4096)
def rank_bounds(count: int, percent: float, wrong: float) -> tuple[int, int]:
    """Ranks between whose samples the percentile lies: of `count` samples in order, from 1, it is
    at least the first and at most the second. 0 and count + 1 stand for no bound."""
    share = percent / 100
    prior = (_PRIOR_WEIGHT * share, _PRIOR_WEIGHT * (1 - share))
    limit = -math.log(wrong)

    def is_possible(below: int) -> bool:
        """Whether so many of the samples may lie below the percentile."""
        return _log_evidence(below, count, share, prior) < limit

    centre = round(count * share)
    low, inside = -1, centre
    while inside - low > 1:
        middle = (low + inside) // 2
        low, inside = (low, middle) if is_possible(middle) else (middle, inside)
    lowest = inside
    inside, high = centre, count + 1
    while high - inside > 1:
        middle = (inside + high) // 2
        inside, high = (middle, high) if is_possible(middle) else (inside, middle)
    return lowest, high


@lru_cache(maxsize=4096)
def rate_bounds(hits: int, count: int, wrong: float) -> tuple[float, float]:
    """Between which rates that lies of which `hits` of `count` are seen, each from 0 to 1."""
    if not count:
        return 0.0, 1.0
    prior = (0.5, 0.5)  # Jeffreys', which is narrow where hits are rare
    limit = -math.log(wrong)
    seen = hits / count
    low, inside = 0.0, seen
    for _ in range(_HALVINGS):
        middle = (low + inside) / 2
        possible = _log_evidence(hits, count, middle, prior) < limit
        low, inside = (low, middle) if possible else (middle, inside)
    lowest = inside if hits else 0.0
    inside, high = seen, 1.0
    for _ in range(_HALVINGS):
        middle = (inside + high) / 2
        possible = _log_evidence(hits, count, middle, prior) < limit
        inside, high = (middle, high) if possible else (inside, middle)
    return lowest, high if hits < count else 1.0


def _log_evidence(hits: int, count: int, share: float, prior: tuple[float, float]) -> float:
    """How much likelier what was seen is under the prior than with `share` alone, as a logarithm.

    With the true share it is a martingale that begins at 0, so by Ville's inequality the chance
    that it ever comes to log(1 / wrong) is at most `wrong`.
    """
    hit, miss = prior
    mixed = _log_beta(hit + hits, miss + count - hits) - _log_beta(hit, miss)
    if (hits and share <= 0) or (hits < count and share >= 1):
        return math.inf
    alone = hits * math.log(share) if hits else 0.0
    alone += (count - hits) * math.log1p(-share) if hits < count else 0.0
    return mixed - alone


def _log_beta(first: float, second: float) -> float:
    return math.lgamma(first) + math.lgamma(second) - math.lgamma(first + second)

"""Which ranks are slow: shares of their steps in, names out. No Ray, no clock.

The steps of all ranks take equally long, so a rank is compared by the share of its steps that it
works itself; the others spend the rest waiting for it. Its peers are the other ranks of its
pipeline stage: their work is the same, while stages may differ by design. A rank that has a stage
to itself is compared with all others, each by how many times as long it works as in the first laps
(itself: as in the longest of them): so it is found when it becomes slow, but not where it always
was.

A rank is slow where it works longer than 1.5 times the median of its peers in each of four laps in
a row, of five steps at least: twenty steps. Shares are counted by looks at random, so over the four
laps it must be two standard errors above that too. And a rank that costs the gang less than a tenth
of its time is nobody's concern, however far it is from its peers: where all do little but wait,
little differs by much.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, median

TIMES = 1.5
"""A rank that takes more than this many times as long as the median of its peers is slow."""
LAPS = 4
LAP_STEPS = 5
LAP_LOOKS = 120
"""Steps and looks, of every rank, that a lap has at least."""
_LEAST_SHARE = 0.1
"""Of the gang's time that a slow rank costs at least."""
_ERRORS = 2.0
_NEXT_TO_NOTHING = 0.01


@dataclass(frozen=True, slots=True)
class Lap:
    """A stretch of consecutive steps."""

    first_step: int
    looks: int
    """At each rank, at least."""
    shares: Mapping[int, float]
    """Of each rank: the part of the time that it worked itself, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Straggler:
    """A rank that is slow."""

    rank: int
    times: float
    """How many times as long it takes as it would if it were like its peers."""
    peers: int
    """Ranks of its stage that it was compared with; 0 where it has the stage to itself."""
    since_step: int

    def __str__(self) -> str:
        whom = f"the median of its {self.peers} peers"
        if self.peers < 2:
            whom = "its only peer" if self.peers else "at first, against all other ranks"
        return (
            f"takes {self.times:.1f} times as long for its own part of a step as {whom}, since "
            f"step {self.since_step}"
        )


def find_stragglers(
    first: Sequence[Lap], latest: Sequence[Lap], stages: Sequence[int]
) -> list[Straggler]:
    """The ranks that were slow in all of the `latest` laps, of which LAPS are wanted. `first`: the
    first LAPS of this beginning of the gang; `stages`: the pipeline stage of each rank."""
    if len(latest) < LAPS:
        return []
    usual = {rank: _mean_share(rank, first) for rank in range(len(stages))}
    found = []
    for rank, stage in enumerate(stages):
        others = [other for other in range(len(stages)) if other != rank]
        peers = [other for other in others if stages[other] == stage]
        if peers:
            expected = [median(lap.shares[peer] for peer in peers) for lap in latest]
        elif others and len(first) == LAPS:
            grown = [median(lap.shares[one] / usual[one] for one in others) for lap in latest]
            most = max(lap.shares[rank] for lap in first)
            expected = [most * times for times in grown]
        else:
            continue
        times = _times([lap.shares[rank] for lap in latest], expected, latest)
        if times is not None:
            found.append(Straggler(rank, times, len(peers), latest[0].first_step))
    return found


def _times(own: Sequence[float], expected: Sequence[float], laps: Sequence[Lap]) -> float | None:
    """How many times the `expected` share a rank's `own` is; None where that is not slow."""
    if any(share <= TIMES * peer for share, peer in zip(own, expected, strict=True)):
        return None
    share, peer = fmean(own), fmean(expected)
    if share - peer < _LEAST_SHARE:
        return None
    # Of counts, by the binomial distribution. What is expected of a rank alone is no count, but
    # about as certain as one.
    squares = share * (1 - share) + TIMES**2 * peer * (1 - min(peer, 1.0))
    if share - TIMES * peer < _ERRORS * sqrt(squares / sum(lap.looks for lap in laps)):
        return None
    return share / max(peer, _NEXT_TO_NOTHING)


def _mean_share(rank: int, laps: Sequence[Lap]) -> float:
    return max(fmean(lap.shares[rank] for lap in laps) if laps else 0.0, _NEXT_TO_NOTHING)

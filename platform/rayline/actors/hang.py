"""Whether a gang hangs, and which rank it hangs on: facts in, a verdict out. No Ray, no clock.

Ranks move in step, so one that stops stops all: the others wait for it in a collective. The one to
blame is therefore the one that does not answer at all (stopped, or stuck in code that lets no other
thread run), else the one that is not in a collective, else the one that is in another collective
than most.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from rayline.actors.progress import Standing

MEDIANS = 5.0
"""A step may take this many times the median before it is looked into."""
_LONG_PHASES_S = 600.0
"""What has no usual length, such as writing a checkpoint or loading a model, may take this long."""


@dataclass(frozen=True, slots=True)
class Hang:
    """The verdict."""

    rank: int
    step: int
    collective: str | None
    """What the others wait in, or what the rank itself does, where that is known."""
    reason: str


def overdue_s(step_seconds: Sequence[float], hang_after_s: float) -> float:
    """How long no step may be reported before the ranks are asked; `step_seconds` are recent."""
    if not step_seconds:
        return _LONG_PHASES_S
    return max(hang_after_s, MEDIANS * median(step_seconds))


def find_hang(standings: Mapping[int, Standing | None], limit_s: float) -> Hang | None:
    """Who the gang hangs on; None where it does not hang. `standings`: every rank's, None for one
    that did not answer; `limit_s` is how long a step may take."""
    answered = {rank: one for rank, one in standings.items() if one is not None}
    silent = sorted(rank for rank in standings if rank not in answered)
    stuck = {rank: one for rank, one in answered.items() if one.for_s >= _limit_s(one, limit_s)}
    if answered and not stuck:
        # A process that imports or loads may be slow to answer; nobody waits too long for it yet.
        return None
    waiting = Counter(one.collective for one in stuck.values() if one.collective)
    usual = waiting.most_common(1)[0][0] if waiting else None
    told = f" while others wait in {usual}" if usual else ""
    if silent:
        step = max((one.step for one in answered.values()), default=0)
        return Hang(silent[0], step, usual, f"does not answer{told}")
    busy = [rank for rank, one in stuck.items() if one.collective is None]
    if busy:
        rank = min(busy, key=lambda each: (stuck[each].step, each))
        one = stuck[rank]
        return Hang(rank, one.step, usual, f"is in {one.phase} for {one.for_s:.0f} s{told}")
    odd = [rank for rank, one in stuck.items() if one.collective != usual]
    rank = min(odd or stuck, key=lambda each: (stuck[each].step, each))
    one = stuck[rank]
    return Hang(rank, one.step, one.collective, f"waits in {one.collective}{told}")


def _limit_s(one: Standing, limit_s: float) -> float:
    return limit_s if one.phase in ("data", "engine", "snapshot") else max(limit_s, _LONG_PHASES_S)

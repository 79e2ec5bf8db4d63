"""What the gang does about a failure: what happened so far in, a decision out. No Ray, no clock.

The restart budget is counted over a window, so that a long run may lose a worker a day for ever and
a run that loses one a minute still ends. Failures that follow each other without a finished step
between them are waited out, twice as long each time; the first is answered at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rayline.actors.failure import Failure
from rayline.spec import RecoverySpec

_FIRST_PAUSE_S = 1.0
_LONGEST_PAUSE_S = 60.0


@dataclass(frozen=True, slots=True)
class Past:
    """A failure that was answered by a restart."""

    cause: Failure
    last_step: int
    """The newest step that had been reported by then."""
    slow: frozenset[int] = frozenset()
    """Ranks that got a new process because they were slow."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What follows from a failure."""

    action: Literal["restart", "stop"]
    reason: str
    pause_s: float = 0.0
    """How long to wait before the restart."""


def decide(cause: Failure, last_step: int, past: Sequence[Past], spec: RecoverySpec) -> Decision:
    """Whether the gang goes on without what it lost. `past` are the failures before, oldest first;
    `last_step` is the newest step reported so far."""
    rank = cause.rank
    if cause.kind == "refused":
        return Decision("stop", f"rank {rank} refused to go on, and would again")
    if cause.kind == "raised" and past and past[-1].cause.signature == cause.signature:
        return Decision("stop", f"rank {rank} raised what was raised before: {_named(cause)}")
    counted = _counted(past, cause.at_s, spec)
    allowed = spec.max_restarts
    if len(counted) >= allowed:
        within = "" if spec.window_s is None else f" within {spec.window_s:g} s"
        return Decision(
            "stop", f"rank {rank} was lost, and recovery.max_restarts allows {allowed}{within}"
        )
    verb = {"raised": "raised", "slow": "is slow"}.get(cause.kind, "was lost")
    reason = f"rank {rank} {verb}; restart {len(counted) + 1} of {allowed}"
    return Decision("restart", reason, pause_s(last_step, past))


def kept_because(cause: Failure, past: Sequence[Past], spec: RecoverySpec) -> str:
    """Why a slow rank keeps its process; empty where it is to be replaced. A gang that goes on
    slowly is better than one that ends, so what decides is asked before anything is ended."""
    if spec.stragglers == "report":
        return "recovery.stragglers is report"
    counted = _counted(past, cause.at_s, spec)
    if any(cause.rank in one.slow for one in counted):
        return "it was replaced before: its node is slow, or its part of the work is larger"
    if len(counted) >= spec.max_restarts:
        return f"recovery.max_restarts allows no more than {spec.max_restarts}"
    return ""


def pause_s(last_step: int, past: Sequence[Past]) -> float:
    """Seconds to wait: none where a step was finished since the last failure."""
    fruitless = 0
    for one in reversed(past):
        if one.last_step != last_step:
            break
        fruitless += 1
    if not fruitless:
        return 0.0
    return min(_FIRST_PAUSE_S * 2.0 ** (fruitless - 1), _LONGEST_PAUSE_S)


def _counted(past: Sequence[Past], now_s: float, spec: RecoverySpec) -> list[Past]:
    window_s = spec.window_s
    return [one for one in past if window_s is None or now_s - one.cause.at_s <= window_s]


def _named(cause: Failure) -> str:
    return cause.error.problem.splitlines()[0]

"""Why a plan is what it is: the best with each other value of one choice, and what that loses."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rayline.errors import SpecError
from rayline.planner.choice import Choice, admits
from rayline.planner.columns import Machines, Numbers
from rayline.planner.plan_grid import RECOMPUTE, SCHEDULE_BUBBLES
from rayline.planner.search import Candidate
from rayline.planner.stage_memory import GIB

_MOST_COUNTED = 60
"""Plans with one value whose memory is counted exactly before none is said to fit."""
_WHY_FIELDS = (
    "tensor",
    "pipeline",
    "context",
    "data",
    "expert",
    "zero_stage",
    "replicate",
    "microbatches",
    "sequence",
    "schedule",
    "stages_per_worker",
    "recompute",
    "offload",
)


@dataclass(frozen=True, slots=True)
class Alternative:
    """The fastest plan with one value of one field, beside the fastest with the value asked for."""

    value: object
    candidate: Candidate | None
    """None where no such plan runs at all."""
    fits: bool
    seconds: dict[str, float]
    """By how much each part of a step is longer than in the plan asked for."""
    reason: str
    """What it loses, in words."""


def explain(choice: Choice, field: str, value: str) -> list[Alternative]:
    """What each other value of `field` would lose against `value`, or win. Called on the driver.
    Raises SpecError where there is no such field or value."""
    column = _why_column(choice, field)
    spoken = [_spoken(field, number) for number in np.unique(column).tolist()]
    wanted = _wanted(field, value, spoken)
    base = _fastest_with(choice, column, field, wanted)
    if base is None:
        raise SpecError(
            f"--why {field}", "no plan with this value runs", value=value, allowed=_told(spoken)
        )
    found = []
    for number in np.unique(column).tolist():
        one = _spoken(field, number)
        if one == wanted:
            found.append(Alternative(one, base[0], base[1], {}, "asked for"))
            continue
        other = _fastest_with(choice, column, field, one)
        if other is not None:
            found.append(_compared(one, base, other, choice.machines))
    return sorted(
        found, key=lambda one: (not one.fits, one.candidate.step_s if one.candidate else 0)
    )


def _why_column(choice: Choice, field: str) -> Numbers:
    if field not in _WHY_FIELDS:
        raise SpecError("--why", "no such choice", value=field, allowed=", ".join(_WHY_FIELDS))
    names = {"recompute": "recompute_kind", "stages_per_worker": "chunks"}
    return choice.ranking.choices[names.get(field, field)]


def _spoken(field: str, number: float) -> object:
    if field == "recompute":
        return RECOMPUTE[int(number)]
    if field == "schedule":
        return tuple(SCHEDULE_BUBBLES)[int(number)]
    return bool(number) if field in ("sequence", "offload") else int(number)


def _wanted(field: str, value: str, spoken: list[object]) -> object:
    for one in spoken:
        if str(one).lower() == value.strip().lower():
            return one
    raise SpecError(f"--why {field}", "no plan has this value", value=value, allowed=_told(spoken))


def _told(spoken: list[object]) -> str:
    return ", ".join(str(one).lower() for one in spoken)


def _fastest_with(
    choice: Choice, column: Numbers, field: str, value: object
) -> tuple[Candidate, bool] | None:
    """The fastest that fits, with True; else the one that needs least memory, with False."""
    ranking = choice.ranking
    chosen = np.array([_spoken(field, number) == value for number in np.unique(column).tolist()])
    numbers = np.unique(column)[chosen]
    admit = admits(choice.job, choice.shape, choice.machines, choice.curves)
    matching = ranking.order[np.isin(column[ranking.order], numbers)]
    for number in matching[:_MOST_COUNTED]:
        admitted = admit(ranking.candidate(int(number)))
        if admitted is not None:
            return admitted, True
    everyone = np.flatnonzero(np.isin(column, numbers))
    if not len(everyone):
        return None
    least = everyone[np.argmin(ranking.memory.total[everyone])]
    return ranking.candidate(int(least)), False


def _compared(
    value: object,
    base: tuple[Candidate, bool],
    other: tuple[Candidate, bool],
    machines: Machines,
) -> Alternative:
    candidate, fits = other
    differences = {
        name: candidate.seconds[name] - base[0].seconds[name] for name in candidate.seconds
    }
    if not fits:
        short = candidate.memory_bytes / GIB - machines.accelerator.memory_gib
        largest = max(candidate.bytes, key=lambda name: candidate.bytes[name])
        reason = f"needs {short:.1f} GiB more than there is, most of it {largest}"
        return Alternative(value, candidate, False, differences, reason)
    total = candidate.step_s - base[0].step_s
    if abs(total) < 0.005 * base[0].step_s:
        return Alternative(value, candidate, True, differences, "as fast")
    word, sign = ("slower", 1) if total > 0 else ("faster", -1)
    parts = sorted(differences.items(), key=lambda part: -sign * part[1])[:2]
    told = ", ".join(f"{name} {seconds:+.3g} s" for name, seconds in parts if seconds * sign > 0)
    share = abs(total) / base[0].step_s
    return Alternative(value, candidate, True, differences, f"{share:.0%} {word}: {told}")

"""Who of a population goes on from whose checkpoint, and with which values.

Population-based training (Jaderberg et al. 2017) in generations: when all members have come to the
end of one, the weakest take the checkpoint of one of the best (exploit, by truncation) and that
one's values, perturbed (explore). Every draw is a function of the seed, the generation and the
member. Costs: smaller is better.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping
from typing import Any

from rayline.spec import PopulationSpec, Range
from rayline.tuning.journal import Move


def segment_ends(every_steps: int, last_step: int) -> list[int]:
    """Last step of each generation."""
    return [*range(every_steps, last_step, every_steps), last_step]


def moves(
    costs: Mapping[int, float],
    params: Mapping[int, Mapping[str, Any]],
    space: Mapping[str, Range],
    spec: PopulationSpec,
    seed: int,
    generation: int,
) -> dict[int, Move]:
    """Number of each member that is replaced to what it goes on from; none where there is nobody
    to compare with. A cost that is not a number is the worst."""
    ranked = sorted(costs, key=lambda number: (_worst_last(costs[number]), number))
    replaced = min(max(1, int(len(ranked) * spec.quantile)), len(ranked) // 2)
    best, weakest = ranked[:replaced], ranked[len(ranked) - replaced :]
    found = {}
    for member in weakest:
        chance = random.Random(f"{seed} {generation} {member}")
        source = chance.choice(best)
        if not _worst_last(costs[source]) < _worst_last(costs[member]):
            continue
        found[member] = Move(source=source, params=explored(params[source], space, spec, chance))
    return found


def explored(
    params: Mapping[str, Any],
    space: Mapping[str, Range],
    spec: PopulationSpec,
    chance: random.Random,
) -> dict[str, Any]:
    """These values, each perturbed or drawn anew, all within their ranges."""
    return {
        dotted: _drawn(wanted, chance)
        if chance.random() < spec.resample
        else _perturbed(params[dotted], wanted, spec, chance)
        for dotted, wanted in sorted(space.items())
    }


def _drawn(wanted: Range, chance: random.Random) -> Any:
    if wanted.choices is not None:
        return chance.choice(wanted.choices)
    low, high = _ends(wanted)
    if wanted.integer:
        return chance.randint(int(low), int(high))
    if wanted.log:
        return _within(math.exp(chance.uniform(math.log(low), math.log(high))), low, high)
    return chance.uniform(low, high)


def _perturbed(value: Any, wanted: Range, spec: PopulationSpec, chance: random.Random) -> Any:
    if wanted.choices is not None:
        place = wanted.choices.index(value) + chance.choice((-1, 1))
        return wanted.choices[min(max(place, 0), len(wanted.choices) - 1)]
    low, high = _ends(wanted)
    factor = chance.choice(spec.factors)
    moved = value * factor
    if not wanted.integer:
        return _within(moved, low, high)
    whole = round(moved)
    if whole == value:
        whole += 1 if factor > 1 else -1
    return int(_within(whole, low, high))


def _within(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


def _ends(wanted: Range) -> tuple[float, float]:
    if wanted.low is None or wanted.high is None:
        raise ValueError("an interval without an end")
    return wanted.low, wanted.high


def _worst_last(cost: float) -> float:
    return math.inf if math.isnan(cost) else cost

"""Several objectives at once: who is beaten by nobody. Costs: smaller is better in each place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from rayline.spec import GoalSpec

K = TypeVar("K")
Costs = tuple[float, ...]


def costs_of(values: Mapping[str, float], goals: Sequence[GoalSpec]) -> Costs | None:
    """What is to be small, one number an objective; None where a value is missing."""
    if any(goal.metric not in values for goal in goals):
        return None
    return tuple(goal.sign * values[goal.metric] for goal in goals)


def beats(one: Costs, other: Costs) -> bool:
    """Whether `one` is nowhere worse and somewhere better (Pareto dominance)."""
    return all(a <= b for a, b in zip(one, other, strict=True)) and one != other


def front(costs: Mapping[K, Costs]) -> list[K]:
    """Those that nobody beats, in the order given."""
    return [
        key for key, own in costs.items() if not any(beats(other, own) for other in costs.values())
    ]


def layers(costs: Mapping[K, Costs]) -> dict[K, int]:
    """Each key's layer: 0 on the front, 1 on what is the front without those, and so on (Deb et al.
    2002, non-dominated sorting)."""
    left, found, layer = dict(costs), {}, 0
    while left:
        for key in front(left):
            found[key] = layer
        left = {key: own for key, own in left.items() if key not in found}
        layer += 1
    return found

"""How many replicas each of two versions must have, at least and at most, while one takes over."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from rayline.serving.rollout.advancing import goal_percent, replicas_for
from rayline.serving.rollout.release import Release
from rayline.spec.rollout import WHOLE_PERCENT, RolloutSpec
from rayline.spec.scale import ScaleSpec


@dataclass(frozen=True, slots=True)
class Allotment:
    """Bounds that hold beside those of the ScaleSpec."""

    least: int = 0
    most: int | None = None
    """None: no bound."""


def allot(release: Release, rollout: RolloutSpec, number: int, canary_up: int) -> Allotment:
    """What the version `number` gets; `canary_up` of the canary's replicas are up.

    The canary has the replicas for a share before it gets it. The stable version keeps all of its
    own, so that it can take everything back at once; only where the canary gets everything and
    nothing is to bake do its replicas go as those of the canary come up, so that a cluster with
    room for one more replica is enough.
    """
    if release.canary is None:
        return Allotment()
    goal = goal_percent(release, rollout)
    if number == release.canary:
        return Allotment(least=replicas_for(goal, release.replicas))
    if number != release.stable or not release.version(release.canary).is_up:
        return Allotment()
    stays = rollout.bake_s > 0 if release.goal is None else not release.at_once
    if goal < WHOLE_PERCENT or stays:
        return Allotment(least=release.replicas)
    left = max(1, release.replicas - canary_up)
    return Allotment(least=left, most=left)


@lru_cache(maxsize=256)  # asked every second, and what follows from the answer is kept beside it
def bounded(scale: ScaleSpec, allotment: Allotment) -> ScaleSpec:
    """The ScaleSpec within these bounds too; what it says of most replicas is never exceeded."""
    most = scale.max_replicas
    if allotment.most is not None:
        most = max(1, min(most, allotment.most))
    least = min(max(scale.min_replicas, allotment.least), most)
    return scale.model_copy(update={"min_replicas": least, "max_replicas": most})

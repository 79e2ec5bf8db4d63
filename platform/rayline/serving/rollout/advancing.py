"""The step of a rollout that follows by itself. Called by the director, about once a second."""

from __future__ import annotations

import math

from rayline.serving.rollout.gates import SCORE, Verdict
from rayline.serving.rollout.release import Release
from rayline.serving.rollout.transitions import Change, finish, roll_back, share
from rayline.spec.rollout import WHOLE_PERCENT, RolloutSpec


def advance(
    release: Release, rollout: RolloutSpec, verdict: Verdict, canary_replicas: int, now_s: float
) -> Change | None:
    """What happens to the version that takes over now; None for nothing.

    `verdict` judges what was measured since the share last changed; `canary_replicas` are up. A
    broken gate rolls back at any time. A share is raised no further than the canary's replicas can
    carry, so where the cluster has no room for both versions at once, the share grows with them.
    """
    if release.canary is None or not release.version(release.canary).is_up:
        return None
    if verdict.action == "roll_back" and not release.at_once:
        return roll_back(release, now_s, reason=verdict.reason)
    since_s = now_s - release.changed_at_s
    if release.percent >= WHOLE_PERCENT:
        baked = release.goal is None and since_s >= rollout.bake_s
        return finish(release, now_s) if release.at_once or baked else None
    watched = verdict.action == "promote" and since_s >= rollout.window_s
    if not watched and not _needs_no_watching(release, rollout, verdict):
        return None
    bearable = WHOLE_PERCENT * canary_replicas / release.replicas
    percent = min(goal_percent(release, rollout), bearable)
    return share(release, percent, now_s) if percent > release.percent else None


def goal_percent(release: Release, rollout: RolloutSpec) -> float:
    """The share that the canary is on its way to, 0 to 100: the one that a person asked for, or the
    next of the steps; what it has where none is left."""
    if release.goal is not None:
        return release.goal
    return next((step for step in rollout.steps if step > release.percent), release.percent)


def replicas_for(percent: float, replicas: int) -> int:
    """How many of `replicas` carry this share of the requests; one at least."""
    return max(1, math.ceil(round(replicas * percent / WHOLE_PERCENT, 6)))


def _needs_no_watching(release: Release, rollout: RolloutSpec, verdict: Verdict) -> bool:
    """Whether the share may rise without a verdict: a person said so, it is between two steps for
    want of replicas, or it is the first, nothing was shadowed, and the evaluation set, where there
    is one, was answered."""
    if release.goal is not None:
        return True
    if release.percent > 0:
        return release.percent not in rollout.steps
    scored = any(finding.gate == SCORE for finding in verdict.findings)
    return rollout.shadow_percent == 0 and (rollout.evaluation is None or scored)

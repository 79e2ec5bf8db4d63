"""Which fields of a search decided how good its trials were."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
from optuna.trial import create_trial

from rayline.spec import GoalSpec, Range
from rayline.tuning.outcome import TrialOutcome
from rayline.tuning.space import distributions, drawn_indices

_ENOUGH = 20
"""Finished trials from which on the best tenth is more than one or two."""


@dataclass(frozen=True, slots=True)
class Importance:
    """Share of each field, by how it was found."""

    method: str
    shares: dict[str, float]
    """Field to its share, 0..1, the largest first; empty where too few trials finished."""


def importance(
    trials: Sequence[TrialOutcome], space: Mapping[str, Range], goal: GoalSpec
) -> Importance:
    """By PED-ANOVA (Watanabe et al. 2023, from Optuna), which asks what sets the best tenth of the
    trials apart; of fewer than 20 finished trials, by rank correlation."""
    done = [
        trial
        for trial in trials
        if trial.status == "finished" and goal.metric in trial.values and not trial.moved
    ]
    costs = [goal.sign * trial.values[goal.metric] for trial in done]
    params = [drawn_indices(space, trial.params) for trial in done]
    if len(done) < _ENOUGH:
        return Importance("rank correlation (Spearman)", _correlations(params, costs, space))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study()
    known = distributions(space)
    for drawn, cost in zip(params, costs, strict=True):
        study.add_trial(create_trial(value=cost, params=drawn, distributions=known))
    found = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    return Importance("PED-ANOVA", _sorted(found))


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's: -1..1, 0 where one of them does not vary; ties share their mean rank."""
    first, second = _ranks(one), _ranks(other)
    count = len(first)
    mean = (count - 1) / 2
    both = sum((a - mean) * (b - mean) for a, b in zip(first, second, strict=True))
    spread = math.sqrt(sum((a - mean) ** 2 for a in first) * sum((b - mean) ** 2 for b in second))
    return both / spread if spread else 0.0


def _correlations(
    params: Sequence[Mapping[str, Any]], costs: Sequence[float], space: Mapping[str, Range]
) -> dict[str, float]:
    if len(costs) < 3:
        return {}
    found = {
        dotted: abs(rank_correlation([float(drawn[dotted]) for drawn in params], costs))
        for dotted in space
    }
    whole = sum(found.values())
    return _sorted({name: share / whole for name, share in found.items()}) if whole else {}


def _ranks(values: Sequence[float]) -> list[float]:
    order = sorted(values)
    first = {value: order.index(value) for value in set(values)}
    counts = {value: order.count(value) for value in first}
    return [first[value] + (counts[value] - 1) / 2 for value in values]


def _sorted(shares: Mapping[str, float]) -> dict[str, float]:
    return dict(sorted(shares.items(), key=lambda pair: -pair[1]))

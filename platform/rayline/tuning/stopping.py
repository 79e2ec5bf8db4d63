"""Which trials are compared at which steps, and which of them stop: a function of the history."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rayline.errors import SpecError
from rayline.spec import AshaSpec, HyperbandSpec, TuneSpec
from rayline.tuning.halving import bracket_shares, brackets, keeps, rungs
from rayline.tuning.history import History, Known
from rayline.tuning.median import median_keeps


class Stopping:
    """The rule of one search; asked by whoever hears of its trials' steps."""

    def __init__(self, spec: TuneSpec) -> None:
        """Raises SpecError where the first rung lies after the last step."""
        self._rule = spec.rule
        self._goal = spec.goals[0]
        self._longest = spec.longest_steps
        shares = [1.0]
        rule = self._rule
        if rule is not None and rule.grace_steps > self._longest:
            field = "asha" if spec.asha is not None else "stopping"
            raise SpecError(
                f"{field}.grace_steps",
                f"more than the {self._longest} steps of a trial, so none would ever be stopped",
                value=rule.grace_steps,
                allowed=f"1..{self._longest}",
                fix=f"lower it, or remove {field}",
            )
        if isinstance(rule, HyperbandSpec):
            shares = bracket_shares(rule.grace_steps, rule.reduction_factor, self._longest)
            shares = shares[: rule.brackets]
        self._brackets = brackets(spec.trials, [share / sum(shares) for share in shares])

    def compares_at(self, number: int, step: int) -> bool:
        """Whether trial `number` is compared with others after this step."""
        return step in self.compared_steps(number)

    def compared_steps(self, number: int) -> Sequence[int]:
        """All steps after which trial `number` is compared with others."""
        rule = self._rule
        if rule is None:
            return []
        if isinstance(rule, AshaSpec | HyperbandSpec):
            return self._rungs(number, rule)
        return range(rule.grace_steps, self._longest, rule.every_steps)

    def why_stop(self, number: int, step: int, history: History) -> str | None:
        """Why trial `number`, whose values at this step the history has, stops; None where it goes
        on."""
        rule, trial = self._rule, history.trials[number]
        own = self._costs(trial)
        if rule is None or step not in own:
            return None
        if isinstance(rule, AshaSpec | HyperbandSpec):
            rivals = self._rivals(number, history)
            costs = [self._costs(rival)[step] for rival in rivals if step in rival.rungs]
            if keeps(own[step], costs, rule.reduction_factor):
                return None
            return (
                f"not among the best 1 in {rule.reduction_factor} of {len(costs) + 1} trials at "
                f"step {step}"
            )
        others = [self._costs(other) for other in history.trials.values() if other is not trial]
        if median_keeps(own, others, step, rule.min_trials):
            return None
        return f"worse at step {step} than the median of the others' running means"

    def _rivals(self, number: int, history: History) -> list[Known]:
        """The others of the same bracket."""
        bracket = self._brackets[number]
        return [
            trial
            for trial in history.trials.values()
            if trial.number != number and self._brackets[trial.number] == bracket
        ]

    def _rungs(self, number: int, rule: AshaSpec | HyperbandSpec) -> list[int]:
        bracket = self._brackets[number]
        return rungs(rule.grace_steps, rule.reduction_factor, self._longest, bracket)

    def _costs(self, trial: Known) -> dict[int, float]:
        """Step to what is to be small; a value that is missing was not finite, and loses."""
        return {
            step: self._goal.sign * values.get(self._goal.metric, self._goal.sign * math.inf)
            for step, values in trial.rungs.items()
        }

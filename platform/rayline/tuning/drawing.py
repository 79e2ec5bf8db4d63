"""Which values the next trial gets: Optuna asked and told, behind Ray Tune's Searcher interface.

Optuna draws at random or by TPE. A combination that cannot run is refused here, before anything is
placed, counts as one of the trials, and Optuna is told. (Ray 2.60's own OptunaSearch can neither
refuse a draw nor take choices that are no scalars.)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import TrialState
from ray.tune.search import Searcher

from rayline.errors import RaylineError, SpecError
from rayline.spec import JobSpec, TuneSpec
from rayline.tuning.outcome import TrialOutcome
from rayline.tuning.space import distributions, drawn_values, trial_job


@dataclass(frozen=True, slots=True)
class Draw:
    """One trial that may run."""

    number: int
    params: dict[str, Any]
    job: JobSpec


class Drawing(Searcher):
    """Draws `spec.trials` combinations, then none.

    `refuse` raises a RaylineError where a job cannot run on this cluster; `config` makes of a draw
    what the trial's process is given.
    """

    def __init__(
        self,
        spec: TuneSpec,
        folder: str,
        refuse: Callable[[JobSpec], None],
        config: Callable[[Draw], dict[str, Any]],
    ) -> None:
        super().__init__(metric=spec.metric, mode="min")
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        samplers = {"random": optuna.samplers.RandomSampler, "optuna": optuna.samplers.TPESampler}
        self._study = optuna.create_study(
            direction="minimize", sampler=samplers[spec.search](seed=spec.seed)
        )
        self._spec = spec
        self._folder = folder
        self._refuse = refuse
        self._config = config
        self._asked: dict[str, optuna.Trial] = {}
        self.draws: dict[str, Draw] = {}
        """Ray Tune's id of a trial to what it runs."""
        self.infeasible: list[TrialOutcome] = []

    @property
    def drawn(self) -> int:
        """Combinations drawn so far, those that cannot run included."""
        return len(self.draws) + len(self.infeasible)

    def suggest(self, trial_id: str) -> dict[str, Any] | str:  # type: ignore[override]
        """The next trial's config, or FINISHED. Called by Ray Tune."""
        while self.drawn < self._spec.trials:
            asked = self._study.ask(distributions(self._spec.space))
            number = self.drawn
            params = drawn_values(self._spec.space, asked.params)
            try:
                job = trial_job(self._spec, number, params, self._folder)
                self._refuse(job)
            except RaylineError as wrong:
                self._study.tell(asked, state=TrialState.FAIL)
                self.infeasible.append(
                    TrialOutcome(number, params, "infeasible", None, 0, None, str(wrong))
                )
                continue
            self._asked[trial_id] = asked
            self.draws[trial_id] = Draw(number, params, job)
            return self._config(self.draws[trial_id])
        return str(Searcher.FINISHED)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """A step of a trial. Called by Ray Tune."""
        if math.isfinite(result[self._spec.metric]):
            self._asked[trial_id].report(result[self._spec.metric], result["step"])

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """A trial's end. One that was stopped early is told as pruned, with its steps so far: TPE
        ranks such trials among each other by how far they came. Called by Ray Tune."""
        asked = self._asked.pop(trial_id)
        ending = None if result is None else result.get("ending")
        loss = math.inf if result is None else result.get(self._spec.metric, math.inf)
        if error or ending == "failed" or not math.isfinite(loss):
            self._study.tell(asked, state=TrialState.FAIL)
        elif ending == "finished":
            self._study.tell(asked, loss)
        else:
            self._study.tell(asked, state=TrialState.PRUNED)

    def save(self, checkpoint_path: str) -> None:
        """Nothing is kept: a search that broke off is begun anew, its runs are in the store."""

    def restore(self, checkpoint_path: str) -> None:
        """Refuse, for the same reason."""
        raise SpecError(
            "search",
            "a search that broke off cannot be resumed",
            value=checkpoint_path,
            fix="start it anew: rayline tune SPEC; the runs of its trials are in the store",
        )

    def __getstate__(self) -> dict[str, Any]:
        # Ray Tune pickles its settings for a resume that does not exist here; see `save`.
        return {}

"""Ray Tune's three doors into the course of a search: what runs next, what stops, what ended.

Ray Tune places, starts and ends trials; it decides nothing. (Its own searchers and schedulers keep
what they know in memory or in pickles of their own, and draw from a global generator.)
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from rayline.actors import why_waiting
from rayline.errors import PlacementError, SpecError
from rayline.tuning.course import Course, Turn


class Drawing(Searcher):
    """What runs next. `config` makes of a turn what the trial's process is given."""

    def __init__(self, course: Course, config: Callable[[Turn], dict[str, Any]]) -> None:
        super().__init__()
        self._course = course
        self._config = config
        self.turns: dict[str, Turn] = {}
        """Ray Tune's id of a trial to what it runs."""

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        """The next trial's config; None where all wait for what runs; or FINISHED. Called by Ray
        Tune."""
        turn = self._course.next()
        if turn is not None:
            self.turns[trial_id] = turn
            return self._config(turn)
        return str(Searcher.FINISHED) if self._course.over else None

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Nothing: Following hears of it. Called by Ray Tune."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the journal has everything."""

    def restore(self, checkpoint_path: str) -> None:
        """Refuse: a search goes on by its journal."""
        raise SpecError(
            "search",
            "is not resumed by Ray Tune",
            value=checkpoint_path,
            fix="rayline tune SPEC --resume",
        )

    def __getstate__(self) -> dict[str, Any]:
        # Ray Tune pickles its settings for a resume of its own, which does not exist here.
        return {}


class Halting(FIFOScheduler):
    """What stops: asked after every step of every trial."""

    def __init__(self, course: Course, turns: dict[str, Turn]) -> None:
        super().__init__()
        self._course = course
        self._turns = turns

    def on_trial_result(
        self, tune_controller: Any, trial: TuneTrial, result: dict[str, Any]
    ) -> str:
        """Called by Ray Tune, but for the last result of a trial that ends by itself."""
        number = self._turns[trial.trial_id].number
        stops = self._course.report(number, result["step"], _values(result))
        return str(TrialScheduler.STOP if stops else TrialScheduler.CONTINUE)

    def __getstate__(self) -> dict[str, Any]:
        return {}


class Following(Callback):
    """What began and what ended; and a search that waits for room longer than its jobs allow is
    ended here."""

    def __init__(self, course: Course, turns: dict[str, Turn]) -> None:
        self._course = course
        self._turns = turns
        self._something_ran_s = time.monotonic()
        self.refused: PlacementError | None = None

    def on_step_end(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        """Called by Ray Tune several times a second."""
        waiting = [trial for trial in trials if trial.status == TuneTrial.PENDING]
        if not waiting or any(trial.status == TuneTrial.RUNNING for trial in trials):
            self._something_ran_s = time.monotonic()
            return
        turn = self._turns[waiting[0].trial_id]
        limit_s = turn.job.resources.placement_timeout_s
        if time.monotonic() - self._something_ran_s > limit_s:
            bundles = waiting[0].config["bundles"]
            why = why_waiting([bundle for bundle in bundles if bundle])
            way = "see what holds the cluster (`ray status`)" if why is None else why.fix
            self.refused = PlacementError(
                "resources.placement_timeout_s",
                f"no room for trial {turn.number} within {limit_s:g} s; it needs {bundles}"
                + ("" if why is None else f": {why.reason}"),
                value=limit_s,
                fix=f"{way}, or give the trials a smaller plan",
            )
            raise self.refused

    def on_trial_start(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        """Called by Ray Tune once a trial has its room."""
        turn = self._turns[trial.trial_id]
        gpus = sum(bundle.get("GPU", 0.0) for bundle in trial.config["bundles"])
        self._course.started(turn.number, turn.job.plan.world_size, gpus)

    def on_trial_result(
        self,
        iteration: int,
        trials: list[TuneTrial],
        trial: TuneTrial,
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        """Called by Ray Tune after every step of a trial, and once at the end of its gang."""
        if "ending" in result:
            self._course.ended(self._turns[trial.trial_id].number, result)

    def on_trial_error(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        """Called by Ray Tune when a trial's own process was lost."""
        lines = str(trial.get_error() or "its process was lost").strip().splitlines()
        self._course.lost(self._turns[trial.trial_id].number, lines[-1])

    def __getstate__(self) -> dict[str, Any]:
        # As of Drawing; and observers may hold a screen or a lock.
        return {}


def _values(result: dict[str, Any]) -> dict[str, float]:
    """The metrics of a result, which Ray Tune hands to schedulers flattened."""
    nested = result.get("values")
    if nested is not None:
        return dict(nested)
    prefix = "values/"
    return {
        name.removeprefix(prefix): value
        for name, value in result.items()
        if name.startswith(prefix)
    }

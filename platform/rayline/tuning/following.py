"""What the search sees of its trials while they run, as Ray Tune tells it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial as TuneTrial

from rayline.actors import why_waiting
from rayline.errors import PlacementError
from rayline.spec import TuneSpec
from rayline.tuning.drawing import Drawing
from rayline.tuning.outcome import TrialOutcome, TrialReport, TrialStatus

TrialObserver = Callable[[TrialReport], None]


@dataclass(slots=True)
class _Seen:
    """What is known of one trial so far."""

    step: int = 0
    loss: float | None = None
    status: TrialStatus = "interrupted"
    """A trial that never came to an end was interrupted."""
    problem: str = ""


class Following(Callback):
    """Collects the trials' ends, tells observers of every step, and ends a search that waits for
    room longer than its jobs allow."""

    def __init__(
        self, spec: TuneSpec, drawing: Drawing, observers: Sequence[TrialObserver]
    ) -> None:
        self._spec = spec
        self._drawing = drawing
        self._observers = observers
        self._seen: dict[str, _Seen] = {}
        self._something_ran_s = time.monotonic()
        self.refused: PlacementError | None = None

    def outcomes(self) -> list[TrialOutcome]:
        """The trials so far, by number; their runs are not known here."""
        found = list(self._drawing.infeasible)
        for trial_id, draw in self._drawing.draws.items():
            seen = self._seen.get(trial_id, _Seen())
            found.append(
                TrialOutcome(
                    draw.number, draw.params, seen.status, seen.loss, seen.step, None, seen.problem
                )
            )
        return sorted(found, key=lambda trial: trial.number)

    def on_step_end(self, iteration: int, trials: list[TuneTrial], **info: Any) -> None:
        """Called by Ray Tune several times a second."""
        waiting = [trial for trial in trials if trial.status == TuneTrial.PENDING]
        if not waiting or any(trial.status == TuneTrial.RUNNING for trial in trials):
            self._something_ran_s = time.monotonic()
            return
        draw = self._drawing.draws[waiting[0].trial_id]
        limit_s = draw.job.resources.placement_timeout_s
        if time.monotonic() - self._something_ran_s > limit_s:
            bundles = waiting[0].config["bundles"]
            why = why_waiting([bundle for bundle in bundles if bundle])
            way = "see what holds the cluster (`ray status`)" if why is None else why.fix
            self.refused = PlacementError(
                "resources.placement_timeout_s",
                f"no room for trial {draw.number} within {limit_s:g} s; it needs {bundles}"
                + ("" if why is None else f": {why.reason}"),
                value=limit_s,
                fix=f"{way}, or give the trials a smaller plan",
            )
            raise self.refused

    def on_trial_result(
        self,
        iteration: int,
        trials: list[TuneTrial],
        trial: TuneTrial,
        result: dict[str, Any],
        **info: Any,
    ) -> None:
        """Called by Ray Tune after every step of a trial, and once at the end of its job."""
        seen = self._seen.setdefault(trial.trial_id, _Seen())
        if result["step"] > 0:
            seen.step, seen.loss = result["step"], result["loss"]
        if "ending" in result:
            seen.status, seen.problem = result["ending"], result.get("problem", "")
            return
        number = self._drawing.draws[trial.trial_id].number
        for observe in self._observers:
            observe(TrialReport(number, self._spec.trials, result["step"], result["loss"]))

    def on_trial_complete(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        """Called by Ray Tune when a trial ended by itself or was stopped by the scheduler."""
        seen = self._seen.setdefault(trial.trial_id, _Seen())
        if seen.status == "interrupted":
            last_step = self._drawing.draws[trial.trial_id].job.last_step
            seen.status = "finished" if seen.step >= last_step else "stopped_early"

    def on_trial_error(
        self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any
    ) -> None:
        """Called by Ray Tune when a trial's own process was lost."""
        seen = self._seen.setdefault(trial.trial_id, _Seen())
        lines = str(trial.get_error() or "its process was lost").strip().splitlines()
        seen.status, seen.problem = "failed", lines[-1]

    def __getstate__(self) -> dict[str, Any]:
        # Ray Tune pickles its settings for a resume that does not exist here, and observers may
        # hold a screen or a lock.
        return {}

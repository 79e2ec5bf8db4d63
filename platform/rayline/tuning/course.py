"""The course of one search: what is tried next, who stops, what is written down.

Everything is decided here from the history alone and journaled before it is acted on, so that a
driver which is killed at any moment leaves a search that another one goes on with. Ray Tune only
asks (`next`) and tells (`started`, `report`, `ended`, `lost`); it is told nothing but the values of
a trial and when one stops.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayline.errors import SpecError
from rayline.spec import JobSpec, TuneSpec
from rayline.tuning.budget import why_no_more
from rayline.tuning.history import OVER, History, Known, Phase, Spent
from rayline.tuning.journal import (
    ClosedRow,
    DrawRow,
    EndRow,
    GenerationRow,
    Journal,
    ResumedRow,
    Row,
    RungRow,
    StartRow,
    StopRow,
)
from rayline.tuning.leavings import STOPPED_FILE, drop_generation
from rayline.tuning.outcome import Moved, RefusedDraw, TrialOutcome, TrialReport, TrialStatus
from rayline.tuning.population import moves, segment_ends
from rayline.tuning.pruning import Verdict
from rayline.tuning.sampling import Sampling
from rayline.tuning.space import segment_job, trial_folder, trial_job
from rayline.tuning.stopping import Stopping

log = logging.getLogger(__name__)

TrialObserver = Callable[[TrialReport], None]
Judge = Callable[[JobSpec, dict[str, Any]], Verdict]
_STATUS: dict[Phase, TrialStatus] = {
    "finished": "finished",
    "stopped_early": "stopped_early",
    "failed": "failed",
}


@dataclass(frozen=True, slots=True)
class Turn:
    """One gang of one trial that is to run now."""

    number: int
    segment: int
    job: JobSpec
    run_id: str | None
    """The run that it goes on with."""
    take_over: str | None
    """Folder of the checkpoint that it begins with."""
    compared_steps: list[int]
    """Steps after which it is compared with others, and waits for the verdict."""


class Course:
    """One driver's part of a search. Used by one thread."""

    def __init__(
        self,
        spec: TuneSpec,
        journal: Journal,
        rows: Sequence[Row],
        folder: str,
        judge: Judge,
        *,
        observers: Sequence[TrialObserver] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`rows` is what the journal has already; `judge` says what is refused of what is drawn."""
        self.spec = spec
        self.history = History.of(rows)
        self._journal = journal
        self._folder = folder
        self._judge = judge
        self._observers = observers
        self._clock = clock
        self._stopping = Stopping(spec)
        self._sampling = Sampling(spec, self.history.known)
        for row in rows:
            self._sampling.take(row)
        self._handed: set[int] = set()
        self._newest: dict[int, tuple[int, dict[str, float]]] = {}
        self.no_more: str | None = None
        """Why nothing more is drawn, though not all trials are there."""

    def next(self) -> Turn | None:
        """What is to run now; None where everybody waits for what runs, or it is over."""
        used_up = why_no_more(self.spec, self._spent())
        if used_up is not None and not self.over:
            self.no_more = used_up
            for left in self.history.in_phase("waiting", "paused"):
                if left.number not in self._handed:
                    self.stop(left.number, used_up)
            return None
        self._turn_generation()
        waiting = [
            one for one in self.history.in_phase("waiting") if one.number not in self._handed
        ]
        trial = waiting[0] if waiting else self._draw()
        if trial is None:
            return None
        self._handed.add(trial.number)
        return self._turn(trial)

    @property
    def over(self) -> bool:
        """Whether nothing runs, and nothing more will."""
        under_way = self.history.in_phase("waiting", "running", "paused")
        return not self._handed and not under_way and self._all_drawn()

    @property
    def most_turns(self) -> int:
        """How often `next` can hand out something in one driver's life."""
        return self.spec.trials * len(self._segment_ends())

    def resume(self) -> None:
        """Go on where another driver ended, and decide what that one did not live to decide: it may
        have noted a rung, and no more."""
        last = self.history.last
        self.write(ResumedRow(trials=self.spec.trials))
        if isinstance(last, RungRow):
            reason = self._stopping.why_stop(last.trial, last.step, self.history)
            if reason is not None:
                self.stop(last.trial, reason)

    def started(self, number: int, workers: int, gpus: float) -> None:
        """A gang of this trial has its room: so many workers, that hold so many GPUs together."""
        segment = self.history.trials[number].segment
        self.write(StartRow(trial=number, segment=segment, workers=workers, gpus=gpus))

    def report(self, number: int, step: int, values: dict[str, float]) -> bool:
        """A step of a trial; whether it stops now."""
        self._newest[number] = (step, values)
        trial = self.history.trials[number]
        reason = why_no_more(self.spec, self._spent())
        if reason is not None:
            self.no_more = reason
        elif self._stopping.compares_at(number, step) and step not in trial.rungs:
            self.write(RungRow(trial=number, step=step, values=values))
            reason = self._stopping.why_stop(number, step, self.history)
        if reason is not None:
            self.stop(number, reason)
            return True
        self._tell(trial)
        return False

    def stop(self, number: int, reason: str) -> None:
        """End a trial early."""
        step, values = self._newest.get(number) or (
            self.history.trials[number].step,
            self.history.trials[number].values,
        )
        marker = Path(trial_folder(self.spec, number, self._folder)) / STOPPED_FILE
        marker.parent.mkdir(parents=True, exist_ok=True)
        self.write(StopRow(trial=number, step=step, values=values, reason=reason))
        marker.touch()
        self._over(number)

    def ended(self, number: int, result: dict[str, Any]) -> None:
        """A gang of this trial came to its end. One that was stopped has had its end already."""
        if self.history.trials[number].phase in OVER:
            return
        segment = self.history.trials[number].segment
        ending = result["ending"]
        if ending == "paused" and segment + 1 == len(self._segment_ends()):
            # The job itself stops before its last step.
            ending = "finished"
        self.write(
            EndRow(
                trial=number,
                segment=segment,
                ending=ending,
                step=result["step"],
                values=result["values"],
                run_id=result.get("run_id"),
                checkpoint=result.get("checkpoint"),
                problem=result.get("problem", ""),
            )
        )
        self._over(number)

    def lost(self, number: int, problem: str) -> None:
        """The process of a trial is gone."""
        step, values = self._newest.get(number, (0, {}))
        self.ended(number, {"ending": "failed", "step": step, "values": values, "problem": problem})

    def close(self, reason: str) -> None:
        """Nothing more will happen."""
        self.write(ClosedRow(reason=reason))

    def write(self, row: Row) -> None:
        """Journal a line, then know it."""
        row = row.model_copy(update={"at_s": self._clock()})
        self._journal.append(row)
        self.history.take(row)
        self._sampling.take(row)

    def outcomes(self) -> list[TrialOutcome]:
        """The trials so far, by number."""
        found = []
        ends = self._segment_ends()
        for _, trial in sorted(self.history.trials.items()):
            step, values = trial.step, trial.values
            if trial.phase not in _STATUS:
                step, values = self._newest.get(trial.number, (step, values))
            moved = tuple(
                Moved(after_step=ends[segment - 1], source=source, params=params)
                for segment, source, params in trial.moves
            )
            status = _STATUS.get(trial.phase, "interrupted")
            found.append(
                TrialOutcome(
                    number=trial.number,
                    params=trial.params,
                    status=status,
                    values=values,
                    steps=step,
                    run_id=trial.run_id,
                    problem=trial.problem,
                    moved=moved,
                )
            )
        return found

    def refused(self) -> list[RefusedDraw]:
        """The draws that were refused."""
        return [
            RefusedDraw(row.draw, row.params, row.refused, row.reason)
            for row in self.history.refused
            if row.refused is not None
        ]

    def _draw(self) -> Known | None:
        """The next trial; refused draws are noted on the way."""
        while not self._all_drawn():
            draws = self.history.draws
            if draws >= self.spec.trials * self.spec.prune.draws_per_trial:
                self.no_more = f"{draws} draws, of which {len(self.history.refused)} were refused"
                log.warning("no more trials: %s", self.no_more)
                return None
            params = self._sampling.draw()
            if params is None:
                self.no_more = "every combination of the grid was drawn"
                return None
            number = len(self.history.trials)
            verdict = self._verdict(number, params)
            refused = verdict.refused is not None
            self.write(
                DrawRow(
                    draw=draws,
                    trial=None if refused else number,
                    params=params,
                    refused=verdict.refused,
                    reason=verdict.reason,
                    memory_gib=verdict.memory_gib,
                    step_s=verdict.step_s,
                )
            )
            if not refused:
                return self.history.trials[number]
        return None

    def _verdict(self, number: int, params: dict[str, Any]) -> Verdict:
        try:
            job = trial_job(self.spec, number, params, self._folder)
        except SpecError as wrong:
            return Verdict(refused="spec", reason=str(wrong))
        return self._judge(job, params)

    def _all_drawn(self) -> bool:
        return self.no_more is not None or len(self.history.trials) >= self.spec.trials

    def _turn(self, trial: Known) -> Turn:
        job = trial_job(self.spec, trial.number, trial.params, self._folder)
        checkpoint = None
        if self.spec.population is not None:
            job = segment_job(job, trial.segment, self._segment_ends()[trial.segment])
            source = trial.number if trial.takes_from is None else trial.takes_from
            checkpoint = self.history.trials[source].checkpoints.get(trial.segment - 1)
        compared = list(self._stopping.compared_steps(trial.number))
        return Turn(trial.number, trial.segment, job, trial.run_id, checkpoint, compared)

    def _turn_generation(self) -> None:
        """Begin the next generation of a population once all members have ended the last one."""
        population, history = self.spec.population, self.history
        if population is None or not self._all_drawn():
            return
        paused = history.in_phase("paused")
        if not paused or history.in_phase("waiting", "running"):
            return
        goal = self.spec.goals[0]
        generation = history.generation + 1
        costs = {
            one.number: goal.sign * one.values[goal.metric]
            if goal.metric in one.values
            else math.inf
            for one in paused
        }
        params = {one.number: one.params for one in paused}
        found = moves(costs, params, self.spec.space, population, self.spec.seed, generation)
        self.write(GenerationRow(generation=generation, moves=found))
        for number in history.trials:
            drop_generation(Path(trial_folder(self.spec, number, self._folder)), generation - 2)

    def _segment_ends(self) -> list[int]:
        last = self.spec.job.last_step
        population = self.spec.population
        return [last] if population is None else segment_ends(population.every_steps, last)

    def _over(self, number: int) -> None:
        self._handed.discard(number)
        self._newest.pop(number, None)
        self._tell(self.history.trials[number])

    def _spent(self) -> Spent:
        return self.history.spent(self._clock())

    def _tell(self, trial: Known) -> None:
        step, values = self._newest.get(trial.number, (trial.step, trial.values))
        told = TrialReport(
            trial=trial.number,
            trials=self.spec.trials,
            step=step,
            loss=values.get("loss", math.nan),
            values=values,
            params=trial.params,
            status=_STATUS.get(trial.phase),
            problem=trial.problem,
            refused=len(self.history.refused),
        )
        for observe in self._observers:
            observe(told)

"""search: draw, refuse what cannot win, run as gangs, stop the weak early, keep the best.

    Course (Optuna, the rules) ── Ray Tune ── one process and one gang a trial
       │                                                │
    journal.jsonl          parent run ◄─────── child runs in the tracking store

Ray Tune places, starts and ends trials; what happens next is decided by the course of the search,
from its journal alone. What a trial runs is `actors.train`, as for any job, inside the trial's
placement group. A driver that is killed leaves a journal, and trials with checkpoints of their own:
another driver goes on with both.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from ray import tune
from ray.tune.error import TuneError

import rayline
from rayline.actors import ensure_ray
from rayline.actors.driver import anchored_job
from rayline.spec import TuneSpec
from rayline.tracking import TrackedRun, open_run
from rayline.tuning.course import Course, TrialObserver, Turn
from rayline.tuning.drawing import Drawing, Following, Halting
from rayline.tuning.journal import JOURNAL_FILE, Journal, Row, SearchRow
from rayline.tuning.outcome import SearchOutcome
from rayline.tuning.recording import (
    clear,
    leave,
    leave_best,
    recorded,
    refuse_unfinished,
    why_fruitless,
)
from rayline.tuning.resuming import adopt, find_search, refuse_other, search_folder
from rayline.tuning.room import cluster_judge, trial_places
from rayline.tuning.space import check_space
from rayline.tuning.stopping import Stopping
from rayline.tuning.warm import known_rows

_NOISE = ("ray.tune.tune", "ray.tune.analysis.experiment_analysis")
"""Loggers that tell of files which are not kept here."""


def search(
    spec: TuneSpec,
    *,
    observers: Sequence[TrialObserver] = (),
    resume: bool | str = False,
) -> SearchOutcome:
    """Run a search and return its trials, best first. Called by the driver.

    `observers` get a TrialReport for every step of every trial, and for its end. `resume` goes on
    with the newest search in the spec's folder that is not over, or with the one of this id:
    finished trials stay as they are, those that were under way go on from their own checkpoints.
    Writes best.yaml (a JobSpec), trials.tsv, report.html and the journal into the search's folder
    and logs them with its run. A trial that fails does not end the search, and draws that cannot
    run or win are refused and cost no trial. Raises SpecError for a range that no trial could take
    or a search that cannot be gone on with, PlacementError where no trial finds room in time,
    WorkerError or SpecError where no trial finished, InterruptedByUser after Ctrl-C; no gang is
    left running.
    """
    check_space(spec)
    Stopping(spec)
    folder = Path.cwd() / spec.directory
    begun = _begun(spec, folder, resume)
    learnt = [] if begun.rows else known_rows(spec)
    ensure_ray()
    anchored = spec.model_copy(update={"job": anchored_job(spec.job, Path.cwd())})
    tags = {"rayline.fingerprint": spec.fingerprint(), "rayline.search": spec.search}
    with ExitStack() as held:
        if begun.run_id is not None:
            # Before anything of a search is touched that another driver may still go on with.
            own = search_folder(folder, begun.run_id)
            journal = held.enter_context(closing(Journal(own / JOURNAL_FILE)))
        run = held.enter_context(
            open_run(
                spec.job.tracking,
                name=spec.name,
                params=spec.flat(),
                tags=tags,
                run_id=begun.run_id,
                directory=folder,
            )
        )
        rows = begun.rows
        if begun.run_id is None:
            own = search_folder(folder, run.run_id)
            journal = held.enter_context(closing(Journal(own / JOURNAL_FILE)))
            rows = [_first_row(spec, run.run_id), *learnt]
            for row in rows:
                journal.append(row)
        course = Course(
            anchored, journal, rows, str(own), cluster_judge(anchored), observers=observers
        )
        if begun.run_id is not None:
            run.event("resumed", "another driver goes on with the search")
            course.resume()
            adopt(course, own, run.run_id)
        if not course.over:
            _run_trials(course, run, own)
        return _ended(course, run, folder, own)


def _first_row(spec: TuneSpec, run_id: str) -> SearchRow:
    return SearchRow(
        at_s=time.time(),
        run_id=run_id,
        spec=spec.model_dump(mode="json"),
        optuna=optuna.__version__,
    )


@dataclass(frozen=True, slots=True)
class _Begun:
    """What an earlier driver left; nothing where there was none."""

    run_id: str | None
    rows: list[Row]


def _begun(spec: TuneSpec, folder: Path, resume: bool | str) -> _Begun:
    if resume is False:
        return _Begun(None, [])
    _, first, rows = find_search(folder, None if resume is True else resume)
    refuse_other(spec, first, rows)
    return _Begun(first.run_id, rows)


def _ended(course: Course, run: TrackedRun, folder: Path, own: Path) -> SearchOutcome:
    """What is left of the search once Ray Tune has nothing more to run."""
    spec = course.spec
    reason = course.no_more or "all trials are done"
    trials = recorded(spec, run.run_id, course.outcomes())
    refused = course.refused()
    clear(spec, own, trials)
    report = leave(spec, run, folder, own, trials, refused)
    refuse_unfinished(spec, trials, over=course.over)
    fruitless = why_fruitless(spec, trials, refused, reason)
    if fruitless is None:
        best_file = leave_best(spec, run, folder, trials[0])
    # Last: until everything is left, there is something to go on with.
    course.close(reason)
    if fruitless is not None:
        raise fruitless
    return SearchOutcome(
        run_id=run.run_id,
        trials=trials,
        best_spec=str(best_file),
        refused=refused,
        report=str(report),
        ended_because=reason,
    )


def _run_trials(course: Course, run: TrackedRun, own: Path) -> None:
    """Everything that Ray Tune does, from the first draw to the last trial's end."""
    spec = course.spec

    def config(turn: Turn) -> dict[str, Any]:
        return {
            "bundles": trial_places(turn.job),
            "trial": {
                "number": turn.number,
                "segment": turn.segment,
                "job": turn.job.model_dump(mode="json"),
                "parent_run_id": run.run_id,
                "run_id": turn.run_id,
                "window_steps": spec.metric_window_steps,
                "price_per_worker_hour": spec.price_per_worker_hour,
                "take_over": turn.take_over,
                "compared_steps": turn.compared_steps,
                "in_parts": spec.population is not None,
            },
        }

    drawing = Drawing(course, config)
    following = Following(course, drawing.turns)
    # The tracking store has every figure; Ray Tune's own CSV and TensorBoard files repeat them.
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    # Its newer output says something even where it is told to be silent.
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
    for name in _NOISE:
        logging.getLogger(name).setLevel(logging.ERROR)
    tuner = tune.Tuner(
        _trial_process(str(Path(rayline.__file__).parents[1])),
        tune_config=tune.TuneConfig(
            search_alg=drawing,
            scheduler=Halting(course, drawing.turns),
            num_samples=course.most_turns,
            max_concurrent_trials=spec.concurrent,
        ),
        run_config=tune.RunConfig(
            # What Ray Tune keeps of one driver is of no use to the next.
            name=f"tune-{course.history.starts}",
            storage_path=str(own),
            callbacks=[following],
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            verbose=0,
        ),
    )
    try:
        tuner.fit()
    except TuneError:
        if following.refused is not None:
            raise following.refused from None
        raise


def _trial_process(source: str) -> type[tune.Trainable]:
    """The class that Ray Tune makes one actor of for each trial.

    It is defined in a function so that Ray sends it by value: the actor's process may not know yet
    where rayline lies (from a checkout it is not installed).
    """

    class TrialProcess(tune.Trainable):
        @classmethod
        def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
            return tune.PlacementGroupFactory(config["bundles"])

        def setup(self, config: dict[str, Any]) -> None:
            if source not in sys.path:
                sys.path.insert(0, source)
            from rayline.tuning.trial import Trial, TrialConfig

            self._trial = Trial(TrialConfig.parse(config["trial"]))

        def step(self) -> dict[str, Any]:
            return self._trial.next_result()

        def cleanup(self) -> None:
            self._trial.end()

    return TrialProcess

"""What stays of a search: every trial as a child run, and the best trial's job as a file."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from rayline.errors import InterruptedByUser, SpecError, WorkerError
from rayline.spec import TuneSpec
from rayline.tracking import amend_run, list_runs, open_run
from rayline.tuning.outcome import TrialOutcome
from rayline.tuning.space import best_job, trial_name

STATUS_TAG = "rayline.trial"
"""Tag of a trial's run: how the search saw it end."""


def recorded(spec: TuneSpec, search_run_id: str, trials: list[TrialOutcome]) -> list[TrialOutcome]:
    """The same trials with their runs, which get a tag that says how the search saw them end."""
    tracking = spec.job.tracking
    children = list_runs(tracking, limit=spec.trials, parent_run_id=search_run_id)
    by_name = {child.name: child for child in children}
    found: list[TrialOutcome] = []
    for trial in trials:
        name = trial_name(spec, trial.number)
        child = by_name.get(name)
        tags = {STATUS_TAG: trial.status, "rayline.problem": trial.problem}
        if child is not None:
            # The process of a trial that was cut off could not close its run.
            cut_off = child.status == "running"
            amend_run(tracking, child.run_id, tags, "interrupted" if cut_off else None)
            found.append(replace(trial, run_id=child.run_id))
            continue
        with open_run(
            tracking, name=name, params=trial.params, tags=tags, parent_run_id=search_run_id
        ) as never_started:
            never_started.finish("failed")
        found.append(replace(trial, run_id=never_started.run_id))
    return found


def refuse_incomplete(trials: list[TrialOutcome], spec: TuneSpec) -> None:
    """Raise where there is no best trial, or where the user ended the search."""
    if len(trials) < spec.trials or any(trial.status == "interrupted" for trial in trials):
        ended = sum(trial.status in ("finished", "stopped_early") for trial in trials)
        raise InterruptedByUser(
            "search",
            f"ended after {ended} of {spec.trials} trials; nothing is left running",
            fix="the trials so far are in trials.tsv and in the tracking store",
        )
    first = trials[0]
    if first.status == "finished" and first.loss is not None and not math.isnan(first.loss):
        return
    if first.status == "finished":
        raise WorkerError("search", "every trial's loss became NaN", fix="lower space.optim.lr")
    kind = SpecError if all(trial.status == "infeasible" for trial in trials) else WorkerError
    raise kind(
        "search",
        f"none of {len(trials)} trials finished; trial {first.number}: {first.problem}",
        fix="mend what that trial says, or change the space",
    )


def best_yaml(spec: TuneSpec, best: TrialOutcome, file: Path) -> str:
    """The best trial's job as YAML that `rayline train` runs; `file` is where it will lie."""
    return (
        f"# rayline train {file}\n"
        f"# Best of {spec.trials} trials of {spec.name}: trial {best.number}, loss {best.loss:.6g} "
        f"after {best.steps} steps, run {best.run_id}.\n" + best_job(spec, best.params).to_yaml()
    )

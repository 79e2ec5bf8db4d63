"""What stays of a search: a child run for each trial, tables, a report, the best trial's job."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rayline.errors import InterruptedByUser, RaylineError, SpecError, WorkerError
from rayline.spec import TuneSpec
from rayline.tracking import RunStatus, TrackedRun, amend_run, list_runs, open_run
from rayline.tuning.figures import StepFigures, read_steps
from rayline.tuning.journal import JOURNAL_FILE
from rayline.tuning.leavings import STEPS_FILE
from rayline.tuning.outcome import (
    RefusedDraw,
    TrialOutcome,
    as_table,
    pareto_front,
    ranked,
    refused_table,
)
from rayline.tuning.report import Findings, write_report
from rayline.tuning.space import best_job, trial_folder, trial_name

STATUS_TAG = "rayline.trial"
"""Tag of a trial's run: how the search saw it end."""
REPORT_FILE = "report.html"
_MOST_RUNS = 10_000


def recorded(spec: TuneSpec, search_run_id: str, trials: list[TrialOutcome]) -> list[TrialOutcome]:
    """The same trials, best first, with their runs, which get a tag that says how the search saw
    them end, and marked where they are on the Pareto front."""
    tracking = spec.job.tracking
    children = list_runs(tracking, limit=_MOST_RUNS, parent_run_id=search_run_id)
    by_name = {child.name: child for child in children}
    on_front = pareto_front(trials, spec.goals)
    found: list[TrialOutcome] = []
    for trial in ranked(trials, spec.goals):
        name = trial_name(spec, trial.number)
        child = by_name.get(name)
        tags = {STATUS_TAG: trial.status, "rayline.problem": trial.problem}
        if child is None:
            with open_run(
                tracking, name=name, params=trial.params, tags=tags, parent_run_id=search_run_id
            ) as never_started:
                never_started.finish("failed")
            run_id = never_started.run_id
        else:
            run_id = child.run_id
            # The process of a trial that was cut off could not close its run.
            cut_off = _closed_as(trial) if child.status == "running" else None
            amend_run(tracking, run_id, tags, cut_off)
        found.append(replace(trial, run_id=run_id, on_front=trial.number in on_front))
    return found


def _closed_as(trial: TrialOutcome) -> RunStatus:
    if trial.status in ("finished", "stopped_early"):
        return "finished"
    return "failed" if trial.status == "failed" else "interrupted"


def leave(
    spec: TuneSpec,
    run: TrackedRun,
    folder: Path,
    own: Path,
    trials: list[TrialOutcome],
    refused: list[RefusedDraw],
) -> Path:
    """Write the tables, the report and the journal into the search's folder and keep them with its
    run; the report's file is given back."""
    texts = {"trials.tsv": as_table(trials)}
    if refused:
        texts["refused.tsv"] = refused_table(refused)
    if len(spec.goals) > 1:
        texts["front.tsv"] = as_table([trial for trial in trials if trial.on_front])
    if spec.population is not None:
        texts["population.json"] = json.dumps(_schedules(trials), indent=1)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
        run.log_text(text, name)
    steps = {trial.number: _steps(spec, own, trial.number) for trial in trials}
    report = folder / REPORT_FILE
    for picture in write_report(Findings(spec, run.run_id, trials, refused, steps), report):
        run.log_artifact(picture)
    run.log_artifact(report)
    run.log_artifact(own / JOURNAL_FILE)
    return report


def leave_best(spec: TuneSpec, run: TrackedRun, folder: Path, best: TrialOutcome) -> Path:
    """Write best.yaml, a complete job, and keep it with the run."""
    file = folder / "best.yaml"
    file.write_text(best_yaml(spec, best, file), encoding="utf-8")
    run.log_artifact(file)
    run.tag("rayline.best_run", best.run_id or "")
    return file


def clear(spec: TuneSpec, own: Path, trials: list[TrialOutcome]) -> None:
    """Remove the checkpoints of trials that are over: they serve nobody."""
    for trial in trials:
        if trial.status == "interrupted":
            continue
        left = Path(trial_folder(spec, trial.number, str(own)))
        for checkpoints in (left / "checkpoints", *left.glob("generation-*")):
            shutil.rmtree(checkpoints, ignore_errors=True)


def refuse_unfinished(spec: TuneSpec, trials: list[TrialOutcome], *, over: bool) -> None:
    """Raise where the user ended the search before it was over."""
    if over and not any(trial.status == "interrupted" for trial in trials):
        return
    ended = sum(trial.status in ("finished", "stopped_early") for trial in trials)
    raise InterruptedByUser(
        "search",
        f"ended after {ended} of {spec.trials} trials; nothing is left running",
        fix="go on with it: rayline tune SPEC --resume; the trials so far are in trials.tsv",
    )


def why_fruitless(
    spec: TuneSpec, trials: list[TrialOutcome], refused: list[RefusedDraw], reason: str
) -> RaylineError | None:
    """What a search without a best trial ends with; None where there is one."""
    if not trials and refused:
        told = refused[-1]
        return SpecError(
            "search",
            f"none of {len(refused)} draws could run; draw {told.draw} was refused "
            f"({told.kind}): {told.reason}",
            fix="mend what that draw says, or change the space",
        )
    if not trials:
        return SpecError("search", f"no trial was begun: {reason}", fix="raise the budget")
    first = trials[0]
    if first.status == "finished" and spec.goals[0].metric in first.values:
        return None
    if first.status == "finished":
        return WorkerError("search", "every trial's loss became NaN", fix="lower space.optim.lr")
    return WorkerError(
        "search",
        f"none of {len(trials)} trials finished; trial {first.number}: {first.problem}",
        fix="mend what that trial says, or change the space or the budget",
    )


def best_yaml(spec: TuneSpec, best: TrialOutcome, file: Path) -> str:
    """The best trial's job as YAML that `rayline train` runs; `file` is where it will lie."""
    told = ", ".join(f"{name} {value:.6g}" for name, value in sorted(best.values.items()))
    lines = [
        f"# rayline train {file}",
        f"# Best of {spec.trials} trials of {spec.name}: trial {best.number}, run {best.run_id}:",
        f"# {told} after {best.steps} steps.",
    ]
    if best.moved:
        lines.append(
            "# These values are the last ones of a population; that run went through others before "
            "(population.json), and its model is with it."
        )
    return "\n".join(lines) + "\n" + best_job(spec, best.params).to_yaml()


def _steps(spec: TuneSpec, own: Path, number: int) -> list[StepFigures]:
    return read_steps(Path(trial_folder(spec, number, str(own))) / STEPS_FILE)


def _schedules(trials: list[TrialOutcome]) -> dict[str, Any]:
    """Of each member, what it went on from and with which values."""
    return {
        str(trial.number): {
            "run": trial.run_id,
            "values": trial.values,
            "moved": [asdict(move) for move in trial.moved],
            "params": trial.params,
        }
        for trial in trials
    }

"""From what a person names (a spec, a folder, a run's id) to the job that is meant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import yaml

from rayline.errors import SpecError
from rayline.spec import CheckpointSource, JobSpec, TrackingSpec
from rayline.spec.document import apply_overrides
from rayline.spec.job_file import SPEC_FILE
from rayline.tracking.history import read_text
from rayline.tracking.store import holds_runs


def read_job(tracking: TrackingSpec, run_id: str, overrides: Sequence[str] = ()) -> JobSpec:
    """The job that a run was started with, changed by `overrides` of the form a.b=value. Raises
    SpecError where there is no such run."""
    tree = yaml.safe_load(read_text(tracking, run_id, SPEC_FILE))
    return JobSpec.parse(apply_overrides(tree, overrides), origin=f"run {run_id}")


def find_checkpoints(
    source: str | Path | JobSpec,
    tracking: TrackingSpec,
    overrides: Sequence[str] = (),
    step: int | None = None,
) -> CheckpointSource:
    """The checkpoints that `source` means: a job or its spec file, its output_dir or a checkpoint's
    folder, or the id of a run in the store; of `step`, where one is given. Raises SpecError where
    it is none of them."""
    meant = _find(source, tracking, overrides)
    if step is None or step == meant.step:
        return meant
    if meant.step is not None:
        raise SpecError(
            "--step", f"the folder is that of step {meant.step}", value=step, fix="leave it out"
        )
    return replace(meant, step=step)


def _find(
    source: str | Path | JobSpec, tracking: TrackingSpec, overrides: Sequence[str]
) -> CheckpointSource:
    if isinstance(source, JobSpec):
        return CheckpointSource.of_job(source)
    path = Path(source).expanduser()
    if path.is_dir():
        return CheckpointSource.of_folder(path, overrides)
    if path.suffix in (".yaml", ".yml"):
        return CheckpointSource.of_job(JobSpec.load(path, overrides))
    if len(path.parts) > 1 or not holds_runs(tracking):
        raise SpecError(
            "source",
            f"neither a folder, nor a spec, nor a run in {tracking.uri}",
            value=str(source),
            allowed="a job's spec file, a checkpoint's folder, or a run's id",
            fix="`rayline runs` lists the runs",
        )
    return CheckpointSource.of_job(read_job(tracking, str(source), overrides))

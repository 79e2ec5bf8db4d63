"""The job as it was started, kept as a file with its run and beside its checkpoints, so that what
it left behind says by itself what it is of."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rayline.errors import SpecError
from rayline.spec.job import JobSpec

SPEC_FILE = "spec.yaml"
"""In output_dir, and among the artifacts of the run; its paths are absolute."""
_CHECKPOINTS = "checkpoints"
_STEP = re.compile(r"step-(\d{8,12})")


@dataclass(frozen=True, slots=True)
class CheckpointSource:
    """Whose checkpoints are meant, and where they lie."""

    job: JobSpec
    root: str
    """The folder of the step-N folders, by path or address."""
    step: int | None = None
    """The step that is meant; None for the newest."""

    @classmethod
    def of_job(cls, job: JobSpec) -> CheckpointSource:
        """The newest checkpoint of a job, where the job puts it."""
        return cls(job, job.checkpoint_directory)

    @classmethod
    def of_folder(cls, folder: Path, overrides: Iterable[str] = ()) -> CheckpointSource:
        """A checkpoint's folder, the folder of several, or a job's output_dir, wherever they lie
        now. Raises SpecError where no spec lies with it."""
        folder = folder.absolute()
        match = _STEP.fullmatch(folder.name)
        root = folder.parent if match else folder
        if not match and (folder / _CHECKPOINTS).is_dir():
            root = folder / _CHECKPOINTS
        home = root.parent if root.name == _CHECKPOINTS else root
        if not (home / SPEC_FILE).is_file():
            raise SpecError(
                "source",
                f"no {SPEC_FILE} lies with the checkpoints, so nobody knows their job",
                value=str(folder),
                fix="give the job's spec instead of the folder, with --set output_dir=... where it "
                "lies elsewhere",
            )
        job = JobSpec.load(home / SPEC_FILE, overrides)
        if home == folder and job.checkpoint.directory is not None:
            # An output_dir whose checkpoints lie elsewhere.
            return cls.of_job(job)
        return cls(job, str(root), int(match[1]) if match else None)


def keep_job(job: JobSpec) -> None:
    """Write the job's file into its output_dir. Called by rank 0. Raises OSError."""
    home = Path(job.directory)
    home.mkdir(parents=True, exist_ok=True)
    fresh = home / f"{SPEC_FILE}.{secrets.token_hex(4)}"
    try:
        fresh.write_text(job.to_yaml(), encoding="utf-8")
        os.replace(fresh, home / SPEC_FILE)
    finally:
        fresh.unlink(missing_ok=True)

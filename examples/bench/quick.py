"""The quickstart's job as the benches of gangs run it: a model of 0.7 M parameters, everything that
it leaves in one folder. Imported by the scripts beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rayline.spec import JobSpec

ROOT = Path(__file__).parents[2]


def quick_job(folder: Path, changes: Mapping[str, object]) -> JobSpec:
    """jobs/specs/quickstart.yaml with absolute paths and `changes`; its output in `folder`/run."""
    from rayline.actors.driver import anchored_job

    quick = JobSpec.load(ROOT / "jobs" / "specs" / "quickstart.yaml")
    places = {
        "output_dir": str(folder / "run"),
        "tracking.uri": f"sqlite:///{folder}/mlflow.db",
    }
    return anchored_job(quick, ROOT).changed({**places, **changes})

"""Where a job's checkpoints lie, and how fast they may be written."""

from pathlib import Path

import pytest

from rayline.errors import SpecError
from rayline.spec import JobSpec

JOB = JobSpec.load(Path(__file__).parents[2] / "jobs" / "specs" / "quickstart.yaml")


@pytest.mark.parametrize(
    ("directory", "place"),
    [
        (None, "runs/mine/checkpoints"),
        ("/mnt/kept/{name}", "/mnt/kept/mine"),
        ("s3://bucket/{name}/all", "s3://bucket/mine/all"),
    ],
)
def test_checkpoints_have_a_place_of_their_own_or_lie_in_the_runs_folder(
    directory: str | None, place: str
) -> None:
    job = JOB.changed({"name": "mine", "output_dir": "runs/{name}"})
    assert job.changed({"checkpoint.directory": directory}).checkpoint_directory == place


@pytest.mark.parametrize(
    ("directory", "reason"),
    [
        ("memory://x", "seen by one process only"),
        ("", "names no folder"),
        ("/", "names no folder"),
        ("s3://", "names no folder"),
    ],
)
def test_a_place_that_cannot_be_shared_is_refused(directory: str, reason: str) -> None:
    with pytest.raises(SpecError, match=reason) as refused:
        JOB.changed({"checkpoint.directory": directory})
    assert refused.value.subject == "checkpoint.directory"


def test_the_bound_is_in_millions_of_bytes() -> None:
    assert JOB.checkpoint.write_bytes_per_s is None
    assert JOB.changed({"checkpoint.write_mb_per_s": 1.5}).checkpoint.write_bytes_per_s == 1.5e6
    with pytest.raises(SpecError):
        JOB.changed({"checkpoint.write_mb_per_s": 0})

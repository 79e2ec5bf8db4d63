"""A run whose checkpoints lie in a store of objects: what the loop adds to `rayline.checkpoint`."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from rayline.checkpoint import list_steps, located
from rayline.errors import CheckpointError
from rayline.models.tiny import write_tiny_model
from rayline.spec import CheckpointSource
from rayline.train.stored_export import find_stored
from support.object_store import fresh_address, s3_server
from support.one_rank import run_alone, small_job

pytestmark = pytest.mark.dist


@pytest.fixture(autouse=True)
def endpoint() -> Iterator[str]:
    with s3_server() as address:
        yield address


def test_a_run_stops_and_goes_on_there_as_if_it_had_not(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model", hidden=32, ffn=64, tied=True)
    job = small_job(tmp_path, "kept", model).changed(
        {
            "steps": 4,
            "checkpoint.directory": f"{fresh_address()}/{{name}}",
            "checkpoint.every_steps": 1,
            "checkpoint.write_mb_per_s": 1000,
        }
    )
    root = located(job.checkpoint_directory)
    stopped, before = run_alone(job.changed({"stop_after_step": 2}), model)
    assert str(stopped.checkpoint).startswith(f"{root}/step-00000002.")
    resumed, after = run_alone(job, model)
    assert (resumed.first_step, resumed.last_step, resumed.finished) == (3, 4, True)
    assert list_steps(root) == [3, 4]
    assert not (tmp_path / "kept" / "checkpoints").exists()
    elsewhere = {"checkpoint.directory": fresh_address(), "output_dir": str(tmp_path / "unbroken")}
    _, unbroken = run_alone(job.changed(elsewhere), model)
    assert [one.loss for one in [*before, *after]] == [one.loss for one in unbroken]


def test_storage_that_cannot_be_used_ends_the_run_before_its_first_step(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model", hidden=32, ffn=64, tied=True)
    job = small_job(tmp_path, "kept", model)
    with pytest.raises(CheckpointError, match="no such bucket") as refused:
        run_alone(job.changed({"checkpoint.directory": "s3://no-such-bucket/x"}), model)
    assert refused.value.subject == "checkpoint.directory"
    assert refused.value.exit_code == 5


def test_an_output_dir_leads_to_the_checkpoints_that_lie_elsewhere(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model", hidden=32, ffn=64, tied=True)
    elsewhere = {"checkpoint.directory": fresh_address(), "steps": 2, "stop_after_step": 1}
    job = small_job(tmp_path, "kept", model).changed(elsewhere)
    stopped, _ = run_alone(job, model)
    found = find_stored(CheckpointSource.of_folder(Path(job.directory)), model)
    assert str(found.folder) == stopped.checkpoint

"""A universal checkpoint as a job's own: what is taken over, and what is refused by name. That a
job goes on from it: test_deepspeed_universal.py."""

import shutil
from pathlib import Path

import pytest
import torch

from rayline.checkpoint import list_steps, read_manifest
from rayline.checkpoint.whole import WholeTensors
from rayline.errors import CheckpointError, SpecError
from rayline.models.tiny import write_tiny_model
from rayline.spec import CheckpointSource, JobSpec
from rayline.train.stored_export import export_stored, find_stored
from rayline.train.universal_import import UniversalImport
from support.one_rank import run_alone, small_job
from support.plain_training import job
from support.stored_checkpoints import store


class Written:
    """A universal checkpoint of step 2, and what is in it."""

    def __init__(self, root: Path) -> None:
        self.model = write_tiny_model(root / "model", hidden=64, ffn=96, layers=2)
        spec = self.job(root)
        self.tensors = store(spec)
        self.folder = root / "universal"
        export_stored(CheckpointSource.of_job(spec), self.model, self.folder, "universal")

    def job(self, folder: Path, **changes: object) -> JobSpec:
        tree = {"model": {"directory": str(self.model)}, "output_dir": str(folder / "run")}
        return job({"data": 2}, **tree, **changes)

    def damaged(self, folder: Path) -> Path:
        """A copy to spoil; the folder of its parameters."""
        shutil.copytree(self.folder, folder)
        return folder / "global_step2_universal" / "zero"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    return Written(tmp_path_factory.mktemp("written"))


def test_tensors_and_counts_are_taken_over_bit_by_bit(written: Written, tmp_path: Path) -> None:
    spec = written.job(tmp_path, ema={"decay": 0.9})
    told: list[tuple[int, int]] = []
    prepared = UniversalImport.prepare(written.folder, spec, written.model)
    assert list_steps(prepared.root) == []
    outcome = prepared.run(lambda done, total: told.append((done, total)), shard_bytes=100_000)
    assert (outcome.step, outcome.optimizer_steps) == (2, 2)
    assert (outcome.samples_consumed, outcome.source_samples) == (16, 16)
    assert outcome == prepared.outcome()
    assert told == sorted(told)
    assert told[-1][0] == told[-1][1] > len(told) > 1

    folder = Path(outcome.checkpoint)
    manifest = read_manifest(folder)
    assert (manifest.step, manifest.samples_consumed) == (2, 16)
    assert manifest.scalars == {"optimizer_steps": 2}
    assert len(manifest.files) == len(told)
    whole = WholeTensors(folder, manifest)
    for name, tensor in written.tensors.items():
        assert torch.equal(whole.read(name, tuple(tensor.shape)), tensor), name
        if name.startswith("weight/"):
            average = f"optimizer/average/{name.removeprefix('weight/')}"
            assert torch.equal(whole.read(average, tuple(tensor.shape)), tensor)
    assert find_stored(CheckpointSource.of_job(spec), written.model).folder == folder
    assert not list(folder.parent.glob("*.writing-*"))
    with pytest.raises(CheckpointError, match="holds a checkpoint already, of step 2"):
        UniversalImport.prepare(written.folder, spec, written.model)


def test_a_growing_batch_counts_what_its_steps_consumed(written: Written, tmp_path: Path) -> None:
    ramp = {"sequences": 8, "ramp": {"start": 4, "increment": 4, "steps": 4}}
    spec = written.job(tmp_path, batch=ramp)
    outcome = UniversalImport.prepare(written.folder, spec, written.model).outcome()
    assert outcome.samples_consumed == spec.batch.samples_after(2) != outcome.source_samples


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"steps": 1}, r"(?s)steps: the checkpoint is of step 2 already \(found 1\).*2 or more"),
        ({"optim": {"kind": "muon", "lr": 1e-3}}, r"(?s)optim\.kind.*'muon'.*adamw, lamb"),
    ],
)
def test_a_job_that_cannot_go_on_is_refused(
    written: Written, tmp_path: Path, changes: dict[str, object], problem: str
) -> None:
    with pytest.raises(SpecError, match=problem):
        UniversalImport.prepare(written.folder, written.job(tmp_path, **changes), written.model)


def test_parameters_of_another_model_are_named(written: Written, tmp_path: Path) -> None:
    zero = written.damaged(tmp_path / "copy")
    (zero / "model.norm.weight").rename(zero / "model.layers.9.norm.weight")
    with pytest.raises(
        CheckpointError,
        match=r"1 are missing, such as model\.norm\.weight; 1 are not the model's, such as "
        r"model\.layers\.9",
    ):
        UniversalImport.prepare(tmp_path / "copy", written.job(tmp_path), written.model)


@pytest.mark.parametrize("state", ["fp32", "exp_avg_sq"])
def test_a_missing_state_leaves_no_checkpoint(written: Written, tmp_path: Path, state: str) -> None:
    zero = written.damaged(tmp_path / "copy")
    (zero / "model.norm.weight" / f"{state}.pt").unlink()
    prepared = UniversalImport.prepare(tmp_path / "copy", written.job(tmp_path), written.model)
    with pytest.raises(CheckpointError, match=rf"model\.norm\.weight/{state}\.pt"):
        prepared.run()
    assert list(prepared.root.iterdir()) == []


def test_a_source_that_is_linked_elsewhere_is_not_followed(
    written: Written, tmp_path: Path
) -> None:
    zero = written.damaged(tmp_path / "copy")
    file = zero / "model.norm.weight" / "fp32.pt"
    file.rename(tmp_path / "secret.pt")
    file.symlink_to(tmp_path / "secret.pt")
    prepared = UniversalImport.prepare(tmp_path / "copy", written.job(tmp_path), written.model)
    with pytest.raises(CheckpointError, match="not a regular file"):
        prepared.run()


def test_a_job_trains_on_from_it_and_its_folder_says_what_it_is(
    written: Written, tmp_path: Path
) -> None:
    spec = small_job(tmp_path, "onward", written.model).changed({"steps": 4})
    UniversalImport.prepare(written.folder, spec, written.model).run()
    result, reports = run_alone(spec, written.model)
    assert (result.first_step, result.last_step) == (3, 4)
    assert [report.step for report in reports] == [3, 4]
    assert CheckpointSource.of_folder(tmp_path / "onward").job == spec

"""DeepSpeed's universal checkpoints: what is written is read back, and nothing that a folder says
leads out of it. That DeepSpeed itself reads them: tests/train/test_deepspeed_universal.py."""

import importlib.metadata
from pathlib import Path

import pytest
import torch

from rayline.checkpoint.universal import (
    DEEPSPEED_VERSION,
    Group,
    Progress,
    UniversalReader,
    UniversalWriter,
    checked_name,
)
from rayline.errors import CheckpointError

NAMES = ("model.embed_tokens.weight", "model.norm.weight")
TENSORS = {
    key: torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))
    for seed, key in enumerate(("fp32", "exp_avg", "exp_avg_sq"))
}


@pytest.fixture
def written(tmp_path: Path) -> Path:
    root = tmp_path / "universal"
    writer = UniversalWriter(root, Progress(steps=7, optimizer_steps=6, samples=56))
    for name in NAMES:
        writer.put(name, TENSORS)
    writer.finish([Group(1e-3, (0.9, 0.95), 1e-8, 0.1), Group(1e-3, (0.9, 0.95), 1e-8, 0.0)], 1.0)
    return root


def test_what_is_written_is_read_back(written: Path) -> None:
    for source in (written, written / "global_step7_universal"):
        reader = UniversalReader(source)
        assert reader.names() == sorted(NAMES)
        assert reader.progress(NAMES[0]) == Progress(7, 6, 56)
        for key, tensor in TENSORS.items():
            assert torch.equal(reader.read(NAMES[1], key, (4, 3)), tensor)


def test_zero_3_keeps_tensors_flat_and_the_step_elsewhere(written: Path) -> None:
    folder = written / "global_step7_universal" / "zero" / NAMES[0]
    torch.save(TENSORS["fp32"].flatten(), folder / "fp32.pt")
    (folder / "step.pt").unlink()
    reader = UniversalReader(written)
    assert torch.equal(reader.read(NAMES[0], "fp32", (4, 3)), TENSORS["fp32"])
    assert reader.progress(NAMES[0]) == Progress(7, 6, 56)


def test_a_tied_copy_or_a_buffer_has_no_state_and_is_no_parameter(written: Path) -> None:
    folder = written / "global_step7_universal" / "zero" / "lm_head.weight"
    folder.mkdir()
    torch.save({"param": TENSORS["fp32"]}, folder / "fp32.pt")
    assert UniversalReader(written).names() == sorted(NAMES)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "/etc", "a\\b", "a\0b", ".hidden", "-x", "x" * 300]
)
def test_a_name_that_leads_elsewhere_is_refused(written: Path, name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="parameter"):
        checked_name(name)
    with pytest.raises(CheckpointError, match="parameter"):
        UniversalReader(written).read(name, "fp32", (4, 3))
    with pytest.raises(CheckpointError, match="parameter"):
        UniversalWriter(tmp_path / "new", Progress(1, 1, 1)).put(name, TENSORS)


@pytest.mark.parametrize("tag", ["..", "../elsewhere", "/tmp", "", "a/b", "nowhere", "x\ny"])
def test_the_tag_names_a_folder_beside_it_or_nothing(
    written: Path, tag: str, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere" / "zero").mkdir(parents=True)
    (tmp_path / "zero").mkdir()
    (written / "latest_universal").write_text(tag)
    with pytest.raises(CheckpointError, match="names no folder beside it"):
        UniversalReader(written)


def test_what_is_no_universal_checkpoint_is_told_apart(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds neither latest_universal nor zero/"):
        UniversalReader(tmp_path)
    (tmp_path / "latest").write_text("global_step4")
    with pytest.raises(CheckpointError, match=r"(?s)not a universal one.*ds_to_universal"):
        UniversalReader(tmp_path)


@pytest.mark.parametrize(
    ("file", "value", "problem"),
    [
        ("fp32.pt", {"param": torch.ones(4, 4)}, r"of shape \(4, 3\)"),
        ("fp32.pt", {"param": torch.ones(1).expand(4, 3)}, "a view"),
        ("fp32.pt", {"param": torch.ones(4, 3, dtype=torch.int64)}, "no tensor of floating"),
        ("fp32.pt", {"weight": torch.ones(4, 3)}, "no tensor of floating"),
        ("step.pt", "six", "step is no number"),
        ("step.pt", float("inf"), "step is no number"),
        ("step.pt", -1, "step is no number"),
        ("step.pt", torch.ones(2), "step is no number"),
        ("step.pt", 1.5, "step is no number"),
    ],
)
def test_a_wrong_file_is_named(written: Path, file: str, value: object, problem: str) -> None:
    path = written / "global_step7_universal" / "zero" / NAMES[0] / file
    torch.save(value, path)
    reader = UniversalReader(written)

    def read_both() -> None:
        reader.read(NAMES[0], "fp32", (4, 3))
        reader.progress(NAMES[0])

    with pytest.raises(CheckpointError, match=problem) as caught:
        read_both()
    assert caught.value.subject == str(path)


def test_model_states_that_are_missing_or_no_dict_are_named(written: Path) -> None:
    file = written / "global_step7_universal" / "mp_rank_00_model_states.pt"
    torch.save([1], file)
    with pytest.raises(CheckpointError, match="holds no dict"):
        UniversalReader(written).progress(NAMES[0])
    torch.save({"global_steps": None}, file)
    with pytest.raises(CheckpointError, match="global_steps is no number"):
        UniversalReader(written).progress(NAMES[0])
    for states in file.parent.glob("*_model_states.pt"):
        states.unlink()
    with pytest.raises(CheckpointError, match="holds no mp_rank_00_model_states"):
        UniversalReader(written).progress(NAMES[0])


def test_the_version_is_the_one_that_is_installed() -> None:
    assert importlib.metadata.version("deepspeed").partition("+")[0] == DEEPSPEED_VERSION

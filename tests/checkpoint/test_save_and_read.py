"""What one layout wrote, any other layout reads."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from rayline import checkpoint
from rayline.errors import CheckpointError
from rayline.parallel.piece import Piece
from rayline.spec import CheckpointManifest, ModelShape, ParallelPlan

DTYPES = [torch.float32, torch.bfloat16, torch.int64]


@st.composite
def cases(draw: st.DrawFn) -> tuple[dict[str, torch.Tensor], list[dict[str, tuple[int, ...]]]]:
    """Tensors of 0 to 3 dims, and two ways to cut each."""
    tensors, layouts = {}, [{}, {}]
    for number in range(draw(st.integers(1, 4))):
        name = f"weight/layer.{number}"
        shape = draw(st.lists(st.integers(0, 6), max_size=3))
        dtype = draw(st.sampled_from(DTYPES))
        generator = torch.Generator().manual_seed(draw(st.integers(0, 9)))
        tensors[name] = (torch.randn(shape, generator=generator) * 100).to(dtype)
        for layout in layouts:
            layout[name] = tuple(draw(st.integers(1, 4)) for _ in shape)
    return tensors, layouts


@settings(max_examples=60, deadline=None)
@given(case=cases(), writers=st.integers(1, 4), readers=st.integers(1, 4))
def test_any_layout_reads_any_other(gang: Any, case: Any, writers: int, readers: int) -> None:
    tensors, (wrote, reads) = case
    with TemporaryDirectory() as folder:
        root = Path(folder) / "checkpoints"
        outcome = gang.save(root, gang.header(6), gang.cut(tensors, wrote, writers))
        assert not outcome.errors
        found = checkpoint.newest_intact(root, gang.model)
        assert found is not None
        assert found.skipped == []
        assert found.manifest.scalars == {"optimizer_steps": 6, "scale": 0.1}
        blank = {name: torch.full_like(whole, -7) for name, whole in tensors.items()}
        for share in gang.cut(blank, reads, readers):
            checkpoint.read_into(found.folder, found.manifest, share)
        for name, whole in tensors.items():
            if whole.numel():
                assert torch.equal(blank[name], whole), name


def test_files_are_plain_safetensors_and_sums(save_step: Callable[..., Path], gang: Any) -> None:
    folder = save_step(6)
    assert sorted(os.listdir(folder)) == [
        "manifest.json",
        "manifest.sha256",
        "rank-00000.safetensors",
        "rank-00001.safetensors",
    ]
    manifest = CheckpointManifest.parse(json.loads((folder / "manifest.json").read_text()))
    held = {file.name: load_file(folder / file.name) for file in manifest.files}
    for piece in manifest.pieces:
        spans = zip(piece.offset, piece.extent, strict=True)
        part = gang.tensors[piece.tensor][tuple(slice(b, b + size) for b, size in spans)]
        assert torch.equal(held[piece.file][piece.key], part)
    done = subprocess.run(["sha256sum", "-c", "manifest.sha256"], cwd=folder, check=False)
    assert done.returncode == 0


def test_only_owners_write(root: Path) -> None:
    whole = torch.arange(4.0)
    copies = [Piece("weight/w", (4,), (0,), whole, owner) for owner in (True, False)]
    folder = checkpoint.save(root, _header(1), copies, checkpoint.Alone(), keep=1)
    manifest = checkpoint.read_manifest(folder)
    assert [piece.tensor for piece in manifest.pieces] == ["weight/w"]


def _header(step: int, scalars: dict[str, float | int] | None = None) -> Any:
    plan = ParallelPlan()
    return checkpoint.CheckpointHeader(step, step, plan, "native", "f", "m", scalars or {})


@pytest.mark.parametrize(
    ("pieces", "reason"),
    [
        ([Piece("weight/w", (4,), (0,), torch.ones(3), True)], "weight/w: 3 of 4 elements"),
        (
            [Piece("weight/w", (4,), (2,), torch.ones(4), True)],
            r"a piece of \[4\] at \[2\] lies outside",
        ),
        ([Piece("weight/w", (4,), (0,), torch.ones(4), True)] * 2, "owns the same rectangle twice"),
        (
            [
                Piece("weight/w", (4,), (0,), torch.ones(3), True),
                Piece("weight/w", (4,), (2,), torch.ones(2), True),
            ],
            "overlap",
        ),
        ([Piece("weight/w", (1,), (0,), torch.ones(1).cfloat(), True)], "complex64 cannot be"),
    ],
)
def test_what_would_not_load_is_not_saved(root: Path, pieces: Any, reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason):
        checkpoint.save(root, _header(1), pieces, checkpoint.Alone(), keep=1)
    assert list(root.iterdir()) == []


def test_a_scalar_that_is_no_number_is_not_saved(root: Path) -> None:
    piece = Piece("weight/w", (1,), (0,), torch.ones(1), True)
    head = _header(1, {"loss_scale": float("nan")})
    with pytest.raises(CheckpointError, match="scalar loss_scale is nan"):
        checkpoint.save(root, head, [piece], checkpoint.Alone(), keep=1)
    assert checkpoint.newest_intact(root, "m") is None


def test_one_failing_rank_fails_every_rank(
    root: Path, gang: Any, save_step: Callable[..., Path]
) -> None:
    save_step(3)
    shares = gang.cut(gang.tensors, gang.cuts, 3)
    shares[2].append(Piece("weight/c", (1,), (0,), torch.ones(1).cfloat(), True))
    outcome = gang.save(root, gang.header(6), shares)
    assert len(outcome.errors) == 3
    assert {str(wrong) for wrong in outcome.errors} == {str(outcome.errors[0])}
    assert "rank 2" in str(outcome.errors[0])
    assert [entry.name for entry in root.iterdir()] == ["step-00000003"]


def test_a_root_that_cannot_be_made_is_named(tmp_path: Path, gang: Any) -> None:
    (tmp_path / "file").write_text("")
    shares = gang.cut(gang.tensors, gang.cuts, 2)
    outcome = gang.save(tmp_path / "file" / "root", gang.header(1), shares)
    assert len(outcome.errors) == 2
    assert "Not a directory" in str(outcome.errors[1])


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "reason"),
    [
        ("weight/z", (7,), torch.float32, "weight/z: not in the checkpoint"),
        ("weight/b", (8,), torch.float32, r"weight/b: of shape \[8\] in the model"),
        ("weight/b", (7,), torch.bfloat16, "weight/b: of element type torch.bfloat16"),
    ],
)
def test_reading_what_is_not_there_names_the_tensor(
    save_step: Callable[..., Path], name: str, shape: Any, dtype: torch.dtype, reason: str
) -> None:
    folder = save_step(6)
    piece = Piece(name, shape, (0,), torch.zeros(shape, dtype=dtype), True)
    with pytest.raises(CheckpointError, match=reason):
        checkpoint.read_into(folder, checkpoint.read_manifest(folder), [piece])


def test_another_model_stops_the_search(root: Path, save_step: Callable[..., Path]) -> None:
    here = ModelShape(4, 64, 4, 2, 16, 128, 264, False, 2048, architecture="Llama")
    there = ModelShape(8, 64, 4, 2, 16, 128, 264, False, 2048, architecture="Llama")
    save_step(3, model_fingerprint=checkpoint.model_fingerprint(here))
    save_step(6, model_fingerprint=checkpoint.model_fingerprint(there))
    with pytest.raises(CheckpointError, match="another model: layers 8 there, 4 here") as caught:
        checkpoint.newest_intact(root, checkpoint.model_fingerprint(here))
    assert caught.value.exit_code == 5
    with pytest.raises(CheckpointError, match="'m' here"):
        checkpoint.newest_intact(root, "m")


def test_no_root_is_no_checkpoint(tmp_path: Path) -> None:
    assert checkpoint.newest_intact(tmp_path / "nothing", "m") is None
    assert checkpoint.list_steps(tmp_path / "nothing") == []


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_stay(root: Path, save_step: Callable[..., Path], keep: int) -> None:
    for step in (2, 4, 6, 8):
        save_step(step, keep=keep)
    assert checkpoint.list_steps(root) == [2, 4, 6, 8][-keep:]


def test_damaged_ones_do_not_count_as_kept(root: Path, save_step: Callable[..., Path]) -> None:
    for step in (2, 4):
        save_step(step)
    (root / "step-00000004" / "manifest.json").unlink()
    save_step(6, keep=2)
    assert checkpoint.list_steps(root) == [2, 4, 6]
    save_step(8, keep=2)
    assert checkpoint.list_steps(root) == [6, 8]


def test_leftovers_go_and_strangers_stay(root: Path, save_step: Callable[..., Path]) -> None:
    for name in ("step-00000003.writing-0a1b2c3d", "step-00000001.replaced", "notes"):
        (root / name).mkdir(parents=True)
        (root / name / "rank-00000.safetensors").write_bytes(b"torn")
    save_step(6)
    assert sorted(entry.name for entry in root.iterdir()) == ["notes", "step-00000006"]


def test_a_step_saved_again_takes_the_place_of_the_first(
    root: Path, gang: Any, save_step: Callable[..., Path]
) -> None:
    save_step(6)
    save_step(6, samples_consumed=999)
    found = checkpoint.newest_intact(root, gang.model)
    assert found is not None
    assert found.manifest.samples_consumed == 999
    assert [entry.name for entry in root.iterdir()] == ["step-00000006"]


def test_a_kill_between_the_two_renames_loses_nothing(
    root: Path, gang: Any, save_step: Callable[..., Path]
) -> None:
    save_step(6).rename(root / "step-00000006.replaced")
    found = checkpoint.newest_intact(root, gang.model)
    assert found is not None
    assert found.manifest.step == 6
    assert found.folder.name == "step-00000006.replaced"


@pytest.mark.dist
def test_processes_of_torch_distributed_save_together(tmp_path: Path) -> None:
    program = Path(__file__).with_name("saving_rank.py")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*torchrun, "--nproc-per-node", "2", str(program), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = checkpoint.newest_intact(tmp_path, "m")
    assert found is not None
    whole = torch.zeros(8)
    piece = Piece("weight/w", (8,), (0,), whole, True)
    checkpoint.read_into(found.folder, found.manifest, [piece])
    assert torch.equal(whole, torch.arange(8.0))

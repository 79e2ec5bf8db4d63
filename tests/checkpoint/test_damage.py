"""Whatever happens to a checkpoint's bytes is found, and the one before is taken."""

import hashlib
import json
import os
import shutil
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

from rayline import checkpoint
from rayline.errors import CheckpointError
from rayline.parallel.piece import Piece

KILLED_SAVERS = Path(__file__).with_name("killed_savers.py")


def flip(file: Path, draw: Callable[[int], int]) -> None:
    content = bytearray(file.read_bytes())
    content[draw(len(content))] ^= 1 << draw(8)
    file.write_bytes(content)


def truncate(file: Path, draw: Callable[[int], int]) -> None:
    os.truncate(file, draw(file.stat().st_size))


def extend(file: Path, draw: Callable[[int], int]) -> None:
    with file.open("ab") as end:
        end.write(bytes(1 + draw(9)))


def delete(file: Path, draw: Callable[[int], int]) -> None:
    file.unlink()


def stale(file: Path, draw: Callable[[int], int]) -> None:
    shutil.copy(file.parent.parent / "step-00000003" / file.name, file)


@settings(max_examples=120, deadline=None)
@given(data=st.data(), damage=st.sampled_from([flip, truncate, extend, delete, stale]))
def test_any_damage_falls_back(gang: Any, data: st.DataObject, damage: Any) -> None:
    with TemporaryDirectory() as folder:
        root = Path(folder)
        for step in (3, 6):
            # Two states differ, as two steps of a run do.
            tensors = {name: whole + step for name, whole in gang.tensors.items()}
            gang.save(root, gang.header(step), gang.cut(tensors, gang.cuts, 2))
        files = sorted((root / "step-00000006").iterdir())
        file = data.draw(st.sampled_from(files))
        damage(file, lambda below: data.draw(st.integers(0, below - 1)))
        found = checkpoint.newest_intact(root, gang.model)
        assert found is not None
        assert found.manifest.step == 3
        assert len(found.skipped) == 1
        assert found.skipped[0].startswith("step-00000006: ")
        assert file.name in found.skipped[0]


def test_a_manifest_and_its_hash_of_another_step_are_seen(
    root: Path, gang: Any, save_step: Callable[..., Path]
) -> None:
    old, new = save_step(3), save_step(6)
    for name in ("manifest.json", "manifest.sha256"):
        shutil.copy(old / name, new / name)
    found = checkpoint.newest_intact(root, gang.model)
    assert found is not None
    assert found.manifest.step == 3
    assert found.skipped == ["step-00000006: manifest.json: of step 3, in the folder of 6"]


def test_every_damaged_file_is_named_when_nothing_is_left(
    root: Path, gang: Any, save_step: Callable[..., Path]
) -> None:
    old, new = save_step(3), save_step(6)
    (old / "manifest.json").unlink()
    os.truncate(new / "rank-00000.safetensors", 10)
    (new / "rank-00001.safetensors").unlink()
    with pytest.raises(CheckpointError) as caught:
        checkpoint.newest_intact(root, gang.model)
    text = str(caught.value)
    assert caught.value.exit_code == 5
    assert "step-00000006: rank-00000.safetensors: 10 bytes instead of" in text
    assert "rank-00001.safetensors: No such file" in text
    assert "step-00000003: manifest.json: No such file" in text


def rewritten(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """An attacker's manifest: its hash fits."""
    tree = json.loads((folder / "manifest.json").read_text())
    change(tree)
    _put(folder, json.dumps(tree))


def _put(folder: Path, text: str) -> None:
    (folder / "manifest.json").write_text(text)
    digest = hashlib.sha256(text.encode()).hexdigest()
    (folder / "manifest.sha256").write_text(f"{digest}  manifest.json\n")


def _set(*path: Any, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(tree: Any) -> None:
        for part in path[:-1]:
            tree = tree[part]
        tree[path[-1]] = to

    return change


HOSTILE = {
    "parent folder": (_set("files", 0, "name", to="../secret.safetensors"), "not the name of"),
    "absolute path": (_set("files", 0, "name", to="/etc/passwd"), "not the name of"),
    "piece elsewhere": (_set("pieces", 0, "file", to="../x"), "not listed"),
    "huge file": (_set("files", 0, "size_bytes", to=10**18), "instead of 1000000000000000000"),
    "negative file": (_set("files", 0, "size_bytes", to=-1), "size_bytes"),
    "huge shape": (_set("pieces", 0, "shape", to=[10**15, 10]), "shape"),
    "negative offset": (_set("pieces", 0, "offset", to=[-3, 0]), "lies outside"),
    "negative extent": (_set("pieces", 0, "extent", to=[-3, 5]), "lies outside"),
    "fewer dims": (_set("pieces", 0, "offset", to=[0]), "lies outside"),
    "not a number": (_set("scalars", "scale", to=float("nan")), "NaN is no number"),
    "infinite": (_set("scalars", "scale", to=float("-inf")), "-Infinity is no number"),
    "future version": (_set("format_version", to=2), "format_version 2, only 1"),
    "unknown key": (_set("code", to="import os"), "unknown key"),
    "text for step": (_set("step", to="six"), "step"),
    "other key": (_set("pieces", 0, "key", to="weight/zzz"), "other tensors than"),
    "no pieces": (_set("pieces", to=[]), "other tensors than"),
    "doubled file": (lambda tree: tree["files"].append(tree["files"][0]), "names a file twice"),
    "doubled piece": (lambda tree: tree["pieces"].append(tree["pieces"][0]), "overlap"),
    "lost piece": (lambda tree: tree["pieces"].pop(), "elements are there"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_manifests_are_refused(
    root: Path, gang: Any, save_step: Callable[..., Path], name: str
) -> None:
    change, reason = HOSTILE[name]
    save_step(3)
    rewritten(save_step(6), change)
    found = checkpoint.newest_intact(root, gang.model)
    assert found is not None
    assert found.manifest.step == 3
    assert reason in found.skipped[0]


@pytest.mark.parametrize(
    "text", ["", "[]", "null", '{"format_version": 1}', '{"step": 1e999}', "[" * 100_000, "\ud83d"]
)
def test_texts_that_are_no_manifest(
    root: Path, gang: Any, save_step: Callable[..., Path], text: str
) -> None:
    folder = save_step(6)
    content = text.encode("utf-8", "surrogatepass")
    (folder / "manifest.json").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    (folder / "manifest.sha256").write_text(f"{digest}  manifest.json\n")
    with pytest.raises(
        CheckpointError, match=r"no intact checkpoint: step-00000006: manifest\.json"
    ):
        checkpoint.newest_intact(root, gang.model)


def test_a_link_is_no_shard(root: Path, gang: Any, save_step: Callable[..., Path]) -> None:
    shard = save_step(6) / "rank-00000.safetensors"
    shard.rename(root / "elsewhere")
    shard.symlink_to(root / "elsewhere")
    with pytest.raises(CheckpointError, match=r"rank-00000\.safetensors: not a regular file"):
        checkpoint.newest_intact(root, gang.model)


def test_a_link_is_no_checkpoint(root: Path, gang: Any, save_step: Callable[..., Path]) -> None:
    folder = save_step(6)
    folder.rename(root / "elsewhere")
    folder.symlink_to(root / "elsewhere")
    with pytest.raises(CheckpointError, match="not a folder"):
        checkpoint.newest_intact(root, gang.model)


@settings(max_examples=40, deadline=None)
@given(
    tree=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    ),
    field=st.sampled_from(["step", "plan", "files", "pieces", "scalars", "engine"]),
)
def test_no_manifest_makes_more_than_an_error(gang: Any, tree: Any, field: str) -> None:
    with TemporaryDirectory() as folder:
        root = Path(folder)
        gang.save(root, gang.header(6), gang.cut(gang.tensors, gang.cuts, 1))
        rewritten(root / "step-00000006", _set(field, to=tree))
        try:
            found = checkpoint.newest_intact(root, gang.model)
        except CheckpointError:
            return
        assert found is not None
        assert found.manifest.step == 6


def test_a_kill_at_any_moment_leaves_the_newest_commit(tmp_path: Path, gang: Any) -> None:
    """Savers write step after step and say so after each, until they are killed in the midst."""
    attempts = 30
    program = [sys.executable, str(KILLED_SAVERS), str(tmp_path), str(attempts)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=60, check=True)
    said = json.loads(done.stdout)
    torn = 0
    for attempt in range(attempts):
        root = tmp_path / str(attempt)
        found = checkpoint.newest_intact(root, "m")
        assert found is not None
        assert found.manifest.step in (said[attempt], said[attempt] + 1)
        assert found.skipped == []
        whole = torch.zeros(200_000)
        piece = Piece("weight/w", (200_000,), (0,), whole, True)
        checkpoint.read_into(found.folder, found.manifest, [piece])
        assert set(whole.tolist()) == {float(found.manifest.step)}
        torn += any("writing" in entry.name for entry in root.iterdir())
    # Otherwise no kill fell into a save, and nothing was tried.
    assert torn > 0

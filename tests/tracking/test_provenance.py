"""What a run says of its origins, and that a fingerprint changes with what it stands for."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayline.spec import ModelRef, TrackingSpec
from rayline.tracking import Origins, open_run, read_run, read_text, record_checkpoint
from rayline.tracking.data_print import PIECE_BYTES, WHOLE_BYTES, data_print
from rayline.tracking.project import git_state, installed_packages
from rayline.tracking.store import connect


def git(folder: Path, *words: str) -> None:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    subprocess.run(["git", *identity, *words], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    git(folder, "init", "-b", "main")
    (folder / "train.py").write_text("steps = 3\n")
    git(folder, "add", ".")
    git(folder, "commit", "-m", "first")
    return folder


def test_the_state_of_a_project_follows_its_changes(project: Path, tmp_path: Path) -> None:
    clean = git_state(project)
    assert clean is not None
    assert (clean.branch, clean.dirty, clean.diff_sha256) == ("main", False, "")
    (project / "train.py").write_text("steps = 4\n")
    changed = git_state(project)
    assert changed is not None
    assert (changed.commit, changed.dirty) == (clean.commit, True)
    (project / "train.py").write_text("steps = 5\n")
    again = git_state(project)
    assert again is not None
    assert again.diff_sha256 not in ("", changed.diff_sha256)
    git(project, "checkout", "--detach")
    detached = git_state(project)
    assert detached is not None
    assert detached.branch == ""
    assert git_state(tmp_path) is None


def test_packages_are_what_python_itself_finds() -> None:
    packages = installed_packages()
    told = {f"{e.metadata['Name']}=={e.version}" for e in importlib.metadata.distributions()}
    assert set(packages.lines) == told
    assert len(packages.sha256) == 64


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_small_data_has_the_same_print_only_where_it_is_the_same(
    tmp_path_factory: pytest.TempPathFactory, a: bytes, b: bytes
) -> None:
    folder = tmp_path_factory.mktemp("data")
    (folder / "a").write_bytes(a)
    (folder / "b").write_bytes(b)
    prints = [data_print([str(folder / name)]).digest for name in "ab"]
    assert (prints[0] == prints[1]) == (a == b)


def test_large_data_is_sampled_from_its_first_byte_to_its_last(tmp_path: Path) -> None:
    content = bytearray(WHOLE_BYTES + 12345)
    file = tmp_path / "large.bin"

    def digest() -> str:
        file.write_bytes(content)
        return data_print([str(file)]).digest

    before = digest()
    for place in (0, PIECE_BYTES - 1, len(content) - PIECE_BYTES, len(content) - 1):
        content[place] ^= 1
        assert digest() != before
        content[place] ^= 1
    content.append(0)
    assert digest() != before
    del content[-1]
    assert digest() == before


def test_folders_and_addresses_are_looked_into(tmp_path: Path) -> None:
    import fsspec

    (tmp_path / "shards").mkdir()
    for number in range(3):
        (tmp_path / "shards" / f"{number}.jsonl").write_text(f"{number}")
    found = data_print([str(tmp_path / "shards")])
    assert [Path(file.path).name for file in found.files] == ["0.jsonl", "1.jsonl", "2.jsonl"]
    assert json.loads(found.profile())["bytes"] == 3
    with fsspec.open("memory://bucket/a.jsonl", "wb") as stream:
        stream.write(b"12345")
    (stored,) = data_print(["memory://bucket/a.jsonl"]).files
    assert stored.size_bytes == 5


def test_a_run_carries_all_of_it(tracking: TrackingSpec, project: Path, tmp_path: Path) -> None:
    data = tmp_path / "chats.jsonl"
    data.write_text('{"text": "a"}\n')
    origins = Origins(
        folder=project,
        model=ModelRef(directory="models/tiny"),
        training=[str(data)],
        hardware={"nodes": 2, "gpus": 16},
    )
    with open_run(tracking, name="job", params={}, tags={}, directory=tmp_path) as run:
        run.in_background(*origins.parts)
        record_checkpoint(run, "runs/job/checkpoints/step-00000060", "data 2")
    assert run.failures == 0
    record = read_run(tracking, run.run_id)
    assert record.tags["rayline.project.branch"] == "main"
    assert len(record.tags["rayline.project.commit"]) == 40
    assert record.tags["rayline.base_model"] == "directory:models/tiny"
    assert json.loads(record.tags["rayline.checkpoint"])["step"] == 60
    environment = json.loads(read_text(tracking, run.run_id, "environment.json"))
    assert environment["hardware"] == {"nodes": 2, "gpus": 16}
    assert environment["packages_sha256"] == record.tags["rayline.packages_sha256"]
    assert environment["processor"]
    packages = read_text(tracking, run.run_id, "environment/requirements.txt")
    assert "mlflow==" in packages
    (read,) = connect(tracking).get_run(run.run_id).inputs.dataset_inputs
    assert (read.dataset.name, read.dataset.digest) == (
        "chats.jsonl",
        data_print([str(data)]).digest,
    )


def test_what_cannot_be_found_out_is_counted_and_the_rest_is_there(
    tracking: TrackingSpec, tmp_path: Path
) -> None:
    origins = Origins(tmp_path, ModelRef(directory="models/tiny"), training=["no/such/file"])
    with open_run(tracking, name="job", params={}, tags={}, directory=tmp_path) as run:
        run.in_background(*origins.parts)
    assert run.failures == 1
    assert "rayline.packages_sha256" in read_run(tracking, run.run_id).tags

"""Checkpoints in a store of objects keep every promise that those on a disk keep."""

import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from rayline import checkpoint
from rayline.checkpoint import reading
from rayline.checkpoint.fence import check_access
from rayline.checkpoint.remote import Remote
from rayline.checkpoint.writing import write_own, writing_folder
from rayline.errors import CheckpointError
from rayline.parallel.piece import Piece
from support.object_store import fresh_address, s3_server

KILLED_SAVERS = Path(__file__).with_name("killed_savers.py")
SaveStep = Callable[..., Remote]


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with s3_server() as address:
        yield address


@pytest.fixture
def root(endpoint: str) -> Remote:
    return Remote(fresh_address())


def put(file: Remote, content: bytes) -> None:
    with file.created() as opened:
        opened.write(content)


def names(folder: Remote) -> list[str]:
    return [entry.name for entry in folder.entries()]


@pytest.mark.parametrize("read_bytes", [64, 32 << 20])
def test_what_several_writers_wrote_is_read_under_another_layout(
    root: Remote, gang: Any, monkeypatch: pytest.MonkeyPatch, read_bytes: int
) -> None:
    monkeypatch.setattr(reading, "_READ_BYTES", read_bytes)
    tensors = {
        **gang.tensors,
        "weight/deep": torch.arange(4 * 6 * 5).reshape(4, 6, 5).bfloat16(),
        "weight/scalar": torch.tensor(3.5),
        "weight/empty": torch.zeros(0, 3),
    }
    wrote = {**gang.cuts, "weight/deep": (2, 3, 1), "weight/scalar": (), "weight/empty": (1, 1)}
    reads = {name: tuple(4 - one for one in cut) for name, cut in wrote.items()}
    outcome = gang.save(root, gang.header(6), gang.cut(tensors, wrote, 4))
    assert not outcome.errors
    found = checkpoint.newest_intact(root, gang.model)
    assert found is not None
    assert {str(found.folder)} == {str(folder) for folder in outcome.folders}
    assert names(found.folder)[:2] == ["manifest.json", "manifest.sha256"]
    blank = {name: torch.full_like(whole, -7) for name, whole in tensors.items()}
    for share in gang.cut(blank, reads, 3):
        checkpoint.read_into(found.folder, found.manifest, share)
    for name, whole in tensors.items():
        assert torch.equal(blank[name], whole), name


def test_only_the_rows_that_are_wanted_are_fetched(
    root: Remote, monkeypatch: pytest.MonkeyPatch, gang: Any
) -> None:
    whole = torch.arange(64_000.0).reshape(1000, 64)
    gang.save(root, gang.header(6), [[Piece("weight/w", (1000, 64), (0, 0), whole, True)]])
    found = checkpoint.newest_intact(root, gang.model)
    assert found is not None
    fetched: list[int] = []
    read = Remote.read

    def counted(file: Remote, begin: int, end: int) -> bytes:
        fetched.append(end - begin)
        return read(file, begin, end)

    monkeypatch.setattr(Remote, "read", counted)
    part = Piece("weight/w", (1000, 64), (500, 16), torch.zeros(10, 32), True)
    checkpoint.read_into(found.folder, found.manifest, [part])
    assert torch.equal(part.data, whole[500:510, 16:48])
    assert sum(fetched) < 10 * 64 * 4 + 500


def test_any_damage_falls_back(root: Remote, gang: Any) -> None:
    for step in (3, 6):
        tensors = {name: whole + step for name, whole in gang.tensors.items()}
        gang.save(root, gang.header(step), gang.cut(tensors, gang.cuts, 2))
    old, new = root.entries()
    draw = random.Random(1)
    for file in new.entries():
        content = file.read_all()
        place = draw.randrange(len(content))
        flipped = bytes([content[place] ^ 1 << draw.randrange(8)])
        damages = {
            "flip": content[:place] + flipped + content[place + 1 :],
            "truncate": content[:place],
            "extend": content + b"\0",
            "stale": (old / file.name).read_all(),
        }
        for damage, content_then in damages.items():
            put(file, content_then)
            found = checkpoint.newest_intact(root, gang.model)
            assert found is not None
            assert found.manifest.step == 3, (file, damage)
            if content_then or file.name != "manifest.json":
                assert found.skipped[0].startswith(f"{new.name}: ")
                assert file.name in found.skipped[0]
        file.remove_file()
        found = checkpoint.newest_intact(root, gang.model)
        assert found is not None
        assert found.manifest.step == 3
        # Without its manifest it is no checkpoint; without a shard it is a damaged one.
        assert bool(found.skipped) == (file.name != "manifest.json")
        put(file, content)
    found = checkpoint.newest_intact(root, gang.model)
    assert found is not None
    assert found.manifest.step == 6


def test_shards_without_a_manifest_are_no_checkpoint_and_go_with_the_next_save(
    root: Remote, gang: Any, save_step: SaveStep
) -> None:
    whole = save_step(3)
    for step, token in ((3, "00000000"), (5, "0a1b2c3d"), (9, "0a1b2c3d")):
        writing = writing_folder(root, step, token)
        for rank, share in enumerate(gang.cut(gang.tensors, gang.cuts, 2)):
            assert "fault" not in json.loads(write_own(writing, share, rank))
    assert checkpoint.list_steps(root) == [3]
    found = checkpoint.newest_intact(root, gang.model)
    assert found is not None
    assert (found.folder, found.skipped) == (whole, [])
    new = save_step(6)
    # What writes step 9 may still be under way.
    assert names(root) == [whole.name, new.name, "step-00000009.0a1b2c3d"]


def test_a_kill_at_any_moment_leaves_the_newest_commit(root: Remote) -> None:
    attempts = 6
    program = [sys.executable, str(KILLED_SAVERS), str(root), str(attempts)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=100, check=True)
    torn = 0
    for attempt, said in enumerate(json.loads(done.stdout)):
        below = root / str(attempt)
        found = checkpoint.newest_intact(below, "m")
        assert found is not None
        assert found.manifest.step in (said, said + 1)
        assert found.skipped == []
        whole = torch.zeros(200_000)
        piece = Piece("weight/w", (200_000,), (0,), whole, True)
        checkpoint.read_into(found.folder, found.manifest, [piece])
        assert set(whole.tolist()) == {float(found.manifest.step)}
        torn += any("manifest.json" not in names(folder) for folder in below.entries())
    # Otherwise no kill fell into a save, and nothing was tried.
    assert torn > 0


@pytest.mark.parametrize("keep", [1, 3])
def test_the_newest_stay(root: Remote, save_step: SaveStep, keep: int) -> None:
    for step in (2, 4, 6, 8):
        save_step(step, keep=keep)
    assert checkpoint.list_steps(root) == [2, 4, 6, 8][-keep:]
    assert len(root.entries()) == keep


def test_damaged_ones_do_not_count_as_kept_and_one_save_of_a_step_stays(
    root: Remote, gang: Any, save_step: SaveStep
) -> None:
    save_step(2)
    (save_step(4) / "rank-00000.safetensors").remove_file()
    save_step(6, keep=2)
    assert checkpoint.list_steps(root) == [2, 4, 6]
    save_step(6, keep=2, samples_consumed=999)
    found = checkpoint.newest_intact(root, gang.model)
    assert found is not None
    assert found.manifest.samples_consumed == 999
    assert len(root.entries()) == 3


def test_what_is_half_removed_is_no_checkpoint_any_more(
    root: Remote, save_step: SaveStep, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = save_step(2)

    def fails(_: Remote) -> None:
        raise CheckpointError("storage", "went away")

    monkeypatch.setattr(Remote, "remove_folder", fails)
    new = save_step(4, keep=1)
    assert names(root) == [old.name, new.name]
    assert checkpoint.list_steps(root) == [4]
    monkeypatch.undo()
    assert names(root) == [old.name, new.name]
    save_step(6, keep=1)
    assert checkpoint.list_steps(root) == [6]
    assert len(root.entries()) == 1


def test_one_failing_rank_fails_every_rank(root: Remote, gang: Any, save_step: SaveStep) -> None:
    save_step(3)
    shares = gang.cut(gang.tensors, gang.cuts, 3)
    shares[2].append(Piece("weight/c", (1,), (0,), torch.ones(1).cfloat(), True))
    outcome = gang.save(root, gang.header(6), shares)
    assert len(outcome.errors) == 3
    assert "rank 2" in str(outcome.errors[0])
    assert checkpoint.list_steps(root) == [3]
    assert len(root.entries()) == 1


def test_the_newest_claim_holds(root: Remote) -> None:
    first = checkpoint.claim(root)
    assert checkpoint.holds(root, first)
    second = checkpoint.claim(root)
    assert not checkpoint.holds(root, first)
    assert checkpoint.holds(root, second)


def test_storage_that_can_be_used_is_left_as_it_was(root: Remote, tmp_path: Path) -> None:
    for place in (root, tmp_path / "new"):
        check_access(place)
        assert checkpoint.list_steps(place) == []
    assert root.entries() == []
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("s3://no-such-bucket/x", "no such bucket or folder"),
        ("nowhere://x", "Protocol not known: nowhere"),
        ("file:///dev/null/x", "Not a directory"),
    ],
)
def test_storage_that_cannot_be_used_is_told_by_field(
    endpoint: str, address: str, reason: str
) -> None:
    with pytest.raises(CheckpointError, match=reason) as refused:
        check_access(checkpoint.located(address))
    assert refused.value.subject == "checkpoint.directory"
    assert refused.value.exit_code == 5


def test_storage_that_is_away_is_not_taken_for_empty_or_damaged(
    root: Remote, save_step: SaveStep, gang: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import fsspec

    save_step(3)
    monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": "http://127.0.0.1:9"})
    with pytest.raises(CheckpointError, match="cannot be used"):
        checkpoint.newest_intact(root, gang.model)
    (wrong,) = gang.save(root, gang.header(6), gang.cut(gang.tensors, gang.cuts, 1)).errors
    assert "rank 0" in str(wrong)
    monkeypatch.undo()
    assert checkpoint.list_steps(root) == [3]

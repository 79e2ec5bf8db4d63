"""Checkpoints that keepers write: whole and by the driver whose turn it is, or not at all."""

import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from rayline.actors.saving import Storage
from rayline.actors.storage import Committer, Writing, folder_of, given_up, write_posted
from rayline.checkpoint import (
    CheckpointHeader,
    Snapshot,
    claim,
    holds,
    list_steps,
    located,
    newest_intact,
    read_into,
)
from rayline.checkpoint.location import entries, remove_file
from rayline.parallel.piece import Piece
from rayline.spec import ParallelPlan
from support.object_store import fresh_address, s3_server

HEADER = CheckpointHeader(
    step=4,
    samples_consumed=32,
    plan=ParallelPlan(tensor=2),
    engine="native",
    spec_fingerprint="spec",
    model_fingerprint="model",
    scalars={},
)


@pytest.fixture(params=["on a disk", "in a store of objects"])
def storage(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Storage]:
    with ExitStack() as held:
        root = str(tmp_path / "checkpoints")
        if request.param == "in a store of objects":
            held.enter_context(s3_server())
            root = fresh_address()
        yield Storage(root=root, keep=2, world_size=2, claim=claim(located(root)), epoch=1)


def posted(step: int, rank: int) -> Snapshot:
    rows = torch.full((2, 3), float(10 * step + rank))
    piece = Piece("weight/a", (4, 3), (2 * rank, 0), rows, owner=True)
    return Snapshot(replace(HEADER, step=step, samples_consumed=8 * step), [], [piece])


def write(committer: Committer, step: int, rank: int) -> str:
    snapshot = posted(step, rank)
    report = write_posted(committer.storage, rank, snapshot)
    told = committer.take(rank, snapshot.header, report)
    return "" if told is None else str(told)


def test_a_checkpoint_appears_once_every_rank_has_written(storage: Storage) -> None:
    committer = Committer(storage)
    assert write(committer, 4, 1) == ""
    assert list_steps(located(storage.root)) == []
    assert write(committer, 4, 0) == "step 4 saved"
    found = newest_intact(located(storage.root), "model")
    assert found is not None
    whole = Piece("weight/a", (4, 3), (0, 0), torch.zeros(4, 3), owner=True)
    read_into(found.folder, found.manifest, [whole])
    assert whole.data[:, 0].tolist() == [40, 40, 41, 41]


def test_a_step_that_lacks_a_rank_gives_way_to_the_next(storage: Storage) -> None:
    committer = Committer(storage)
    write(committer, 4, 1)
    write(committer, 6, 0)
    assert write(committer, 6, 1) == "step 6 saved"
    assert list_steps(located(storage.root)) == [6]
    left = [entry.name for entry in entries(located(storage.root)) if entry.name != "fence"]
    assert len(left) == 1


def test_another_epoch_writes_to_another_folder(storage: Storage) -> None:
    assert folder_of(storage, 4) != folder_of(replace(storage, epoch=2), 4)
    assert folder_of(storage, 4) == folder_of(replace(storage), 4)


def test_who_was_cut_off_commits_nothing(storage: Storage) -> None:
    cut_off = Committer(storage)
    write(cut_off, 4, 0)
    other = Committer(replace(storage, claim=claim(located(storage.root))))
    assert not holds(located(storage.root), storage.claim)
    told = write(cut_off, 4, 1)
    assert told.startswith("step 4 not saved: another run writes to ")
    assert list_steps(located(storage.root)) == []
    write(other, 4, 0)
    assert write(other, 4, 1) == "step 4 saved"


def test_storage_that_fails_is_told_and_leaves_the_checkpoints_before(storage: Storage) -> None:
    committer = Committer(storage)
    for rank in (0, 1):
        write(committer, 4, rank)
    snapshot = posted(6, 0)
    write(committer, 6, 1)
    report = write_posted(storage, 0, snapshot)
    # A shard that was told of is gone: what a full disk is to a save.
    remove_file(folder_of(storage, 6) / "rank-00001.safetensors")
    assert str(committer.take(0, snapshot.header, report)).startswith("step 6 not saved: ")
    assert list_steps(located(storage.root)) == [4]
    assert newest_intact(located(storage.root), "model") is not None


def test_storage_that_cannot_be_asked_is_told_and_is_not_another_run() -> None:
    away = Storage(root="nowhere://x", keep=2, world_size=2, claim="mine", epoch=1)
    committer = Committer(away)
    write(committer, 4, 0)
    assert "Protocol not known" in write(committer, 4, 1)


def test_a_shard_that_takes_too_long_is_given_up_and_its_thread_ends_by_itself(
    tmp_path: Path,
) -> None:
    root = located(str(tmp_path / "checkpoints"))
    slow = Storage(
        root=str(root),
        keep=2,
        world_size=2,
        claim=claim(root),
        epoch=1,
        give_up_after_s=0.05,
        # The shard has some 400 bytes.
        bytes_per_s=800.0,
    )
    writing = Writing(slow, 0, posted(4, 0))
    assert writing.report() is None
    assert writing.stuck
    told = str(given_up(slow, 0, writing.step))
    assert told.startswith("step 4 not saved: storage took over 0.05 s for the part of rank 0")
    deadline_s = time.monotonic() + 20
    while writing.stuck and time.monotonic() < deadline_s:
        time.sleep(0.02)
    assert not writing.stuck
    assert list_steps(root) == []
    again = replace(slow, bytes_per_s=None, give_up_after_s=20.0)
    committer = Committer(again)
    for rank in (0, 1):
        report = Writing(again, rank, posted(6, rank)).report()
        assert report is not None
        told = str(committer.take(rank, posted(6, rank).header, report))
    assert told == "step 6 saved"

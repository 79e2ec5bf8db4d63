"""Snapshots in memory: what is read back is what was kept, or nothing."""

import mmap
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rayline.checkpoint import (
    CheckpointHeader,
    SnapshotArea,
    generation_bytes,
    marks,
    put_generation,
)
from rayline.errors import CheckpointError
from rayline.parallel.piece import Piece
from rayline.spec import ParallelPlan, SnapshotMark

HEADER = CheckpointHeader(
    step=1,
    samples_consumed=8,
    plan=ParallelPlan(tensor=2),
    engine="native",
    spec_fingerprint="spec",
    model_fingerprint="model",
    scalars={"optimizer_steps": 1, "loss_scale": 65536.5},
)


@pytest.fixture
def file() -> Iterator[int]:
    descriptor = os.memfd_create("area")
    yield descriptor
    os.close(descriptor)


def path_of(file: int) -> Path:
    return Path(f"/proc/{os.getpid()}/fd/{file}")


def pieces(step: int) -> list[Piece]:
    generator = torch.Generator().manual_seed(step)
    weight = torch.randn(300, 257, generator=generator)
    return [
        Piece("weight/a", (300, 514), (0, 257), weight, owner=True),
        Piece("optimizer/exp_avg/a", (300, 514), (0, 257), weight.T.contiguous().T, owner=False),
        Piece("weight/half", (3,), (0,), weight[0, :3].bfloat16(), owner=True),
        Piece("optimizer/code/a", (7,), (0,), torch.arange(7, dtype=torch.uint8), owner=True),
        Piece("weight/none", (0, 4), (0, 0), torch.empty(0, 4), owner=True),
    ]


def keep(area: SnapshotArea, step: int, epoch: int = 1) -> None:
    header = replace(HEADER, step=step, samples_consumed=8 * step)
    area.keep(header, epoch, pieces(step), [f"report {step}"])


def emptied(step: int) -> list[Piece]:
    return [replace(piece, data=torch.zeros_like(piece.data)) for piece in pieces(step)]


def assert_holds(area: SnapshotArea, step: int) -> None:
    held = emptied(step)
    area.fill(area.read(step), held)
    for kept, wanted in zip(held, pieces(step), strict=True):
        assert torch.equal(kept.data, wanted.data)
    told = area.read(step)
    assert told.header == replace(HEADER, step=step, samples_consumed=8 * step)
    assert told.reports == [f"report {step}"]


def found(file: int) -> set[SnapshotMark]:
    with mmap.mmap(file, os.fstat(file).st_size) as area:
        return set(marks(area).values())


def test_two_generations_are_read_back_bit_for_bit_through_another_mapping(file: int) -> None:
    with SnapshotArea(path_of(file)) as area:
        for step in (1, 2, 3):
            keep(area, step)
    assert found(file) == {SnapshotMark(2, 1), SnapshotMark(3, 1)}
    with SnapshotArea(path_of(file)) as again:
        assert_holds(again, 2)
        assert_holds(again, 3)
        with pytest.raises(CheckpointError, match="no whole snapshot of step 1"):
            again.read(1)


def test_a_step_done_again_takes_the_place_of_its_first_time(file: int) -> None:
    with SnapshotArea(path_of(file)) as area:
        keep(area, 4)
        keep(area, 5)
        # The gang went on from step 4: its snapshot stays until the next one is whole.
        keep(area, 5, epoch=2)
        assert found(file) == {SnapshotMark(4, 1), SnapshotMark(5, 2)}
        keep(area, 6, epoch=2)
    assert found(file) == {SnapshotMark(5, 2), SnapshotMark(6, 2)}


def test_another_plan_or_type_is_refused_by_the_tensors_name(file: int) -> None:
    with SnapshotArea(path_of(file)) as area:
        keep(area, 1)
        moved = [replace(piece, offset=(0, 0)) for piece in emptied(1)[:1]]
        with pytest.raises(CheckpointError, match="lacks weight/a"):
            area.fill(area.read(1), moved)
        retyped = [replace(piece, data=piece.data.double()) for piece in emptied(1)[:1]]
        with pytest.raises(CheckpointError, match="lacks weight/a"):
            area.fill(area.read(1), retyped)


def test_more_state_than_before_makes_the_area_larger(file: int) -> None:
    with SnapshotArea(path_of(file)) as area:
        area.keep(HEADER, 1, pieces(1)[2:], [])
        keep(area, 2)
        keep(area, 3)
        assert_holds(area, 2)


@settings(max_examples=150, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_no_flipped_bit_of_head_or_tensors_is_ever_loaded(place: float, bit: int) -> None:
    file = os.memfd_create("area")
    try:
        with SnapshotArea(path_of(file)) as area:
            keep(area, 1)
            with (
                mmap.mmap(file, os.fstat(file).st_size) as mapped,
                generation_bytes(mapped, 0) as content,
            ):
                length = len(content)
                at = 64 + int(place * (length - 64))
                content[at] ^= 1 << bit
            with pytest.raises(CheckpointError, match="not as it was written"):
                area.read(1)
    finally:
        os.close(file)


def test_a_copy_elsewhere_is_the_same_and_one_that_never_ended_is_none(file: int) -> None:
    other = os.memfd_create("copy")
    try:
        with SnapshotArea(path_of(file)) as area:
            keep(area, 1)
            keep(area, 2)
        with mmap.mmap(file, os.fstat(file).st_size) as mapped:
            for number, mark in sorted(marks(mapped).items(), key=lambda pair: pair[1].step):
                with generation_bytes(mapped, number) as content:
                    put_generation(other, mark, content)
        with SnapshotArea(path_of(other)) as copied:
            assert_holds(copied, 1)
            assert_holds(copied, 2)
        # A kill in the middle of a copy leaves a generation that is being written.
        with mmap.mmap(other, os.fstat(other).st_size) as torn:
            torn[0] = 1
        assert found(other) == {SnapshotMark(2, 1)}
    finally:
        os.close(other)


def test_an_area_that_is_gone_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not there any more"):
        SnapshotArea(tmp_path / "nothing")

"""Fill rectangles of any layout from a checkpoint of any layout.

Each wanted rectangle is intersected with the stored ones, and only the rows in common are read. So
the plan that reads need not be the plan that wrote. Some MiB are read at a time, and several times
at once: behind an address most of the time goes to waiting for answers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from rayline.checkpoint.finding import rectangle_of
from rayline.checkpoint.layout import Rectangle
from rayline.checkpoint.location import Location
from rayline.checkpoint.stored import NotSafetensors, StoredTensor, stored_tensors
from rayline.errors import CheckpointError
from rayline.parallel.piece import Piece
from rayline.spec import CheckpointManifest, TensorPiece

_READ_BYTES = 32 << 20
"""What is read at a time."""
_READS = 8
"""How many reads are under way at once."""


@dataclass(frozen=True, slots=True)
class _Copy:
    """Some rows that a stored tensor and a piece have in common."""

    stored: StoredTensor
    source: tuple[slice, ...]
    piece: Piece
    target: tuple[slice, ...]

    def run(self) -> None:
        values = self.stored.part(self.source)
        with torch.no_grad():
            self.piece.data.detach()[self.target].copy_(values)


def read_into(folder: Location, manifest: CheckpointManifest, pieces: Sequence[Piece]) -> None:
    """Fill `data` of every piece in place. Any rank calls it by itself, on a folder that
    `newest_intact` has verified.

    Raises CheckpointError naming the tensor when it is missing or of another shape or element
    type, and naming the file when it cannot be read.
    """
    records: dict[str, list[TensorPiece]] = defaultdict(list)
    for record in manifest.pieces:
        records[record.tensor].append(record)
    shards: dict[str, dict[str, StoredTensor]] = {}
    copies: list[_Copy] = []
    # Of a tensor without elements nothing is stored.
    for piece in (piece for piece in pieces if 0 not in piece.shape):
        _check_shape(folder, piece, records.get(piece.tensor, []))
        for record in _overlapping(piece, records[piece.tensor]):
            copies += _copies(_stored(folder, record, shards), record, piece)
    with ThreadPoolExecutor(_READS) as readers:
        try:
            for _ in readers.map(_Copy.run, copies):
                pass
        except OSError as wrong:
            raise CheckpointError(
                str(wrong.filename or folder), f"not readable: {wrong.strerror}"
            ) from None
        finally:
            readers.shutdown(cancel_futures=True)


def _stored(
    folder: Location, record: TensorPiece, shards: dict[str, dict[str, StoredTensor]]
) -> StoredTensor:
    """The tensor that `record` tells of; headers that were read are kept in `shards`."""
    file = folder / record.file
    try:
        if record.file not in shards:
            shards[record.file] = stored_tensors(file)
        found = shards[record.file].get(record.key)
    except (OSError, NotSafetensors) as wrong:
        raise CheckpointError(str(file), f"not readable: {wrong}") from None
    if found is None or list(found.shape) != record.extent:
        raise CheckpointError(str(file), f"does not hold {record.key} as the manifest lists it")
    return found


def _check_shape(folder: Location, piece: Piece, records: list[TensorPiece]) -> None:
    if not records:
        raise CheckpointError(
            piece.tensor,
            f"not in the checkpoint {folder}",
            fix="resume with the model and the optimizer that wrote it",
        )
    saved = records[0].shape
    if saved != list(piece.shape):
        raise CheckpointError(
            piece.tensor,
            f"of shape {list(piece.shape)} in the model",
            value=saved,
            fix=f"give the model that {folder} was written of",
        )


def _overlapping(piece: Piece, records: list[TensorPiece]) -> list[TensorPiece]:
    """The records to read, after checking that together they hold all of the piece."""
    wanted = _rectangle(piece)
    overlaps = [(record, wanted.overlap(rectangle_of(record))) for record in records]
    if sum(common.places for _, common in overlaps if common) != wanted.places:
        raise CheckpointError(piece.tensor, f"the checkpoint lacks a part of {wanted}")
    return [record for record, common in overlaps if common]


def _rectangle(piece: Piece) -> Rectangle:
    return Rectangle(tuple(piece.offset), tuple(piece.data.shape))


def _copies(stored: StoredTensor, record: TensorPiece, piece: Piece) -> Iterator[_Copy]:
    """What to copy of one stored tensor, in parts of a size that is read at once."""
    if stored.dtype != piece.data.dtype:
        raise CheckpointError(
            piece.tensor,
            f"of element type {piece.data.dtype} in the run, of {stored.dtype} in {stored.file}",
            fix="resume with the precision that the checkpoint was written with",
        )
    source, target = rectangle_of(record), _rectangle(piece)
    common = target.overlap(source)
    assert common is not None  # noqa: S101 (only overlapping records come here)
    for part in common.bands(max(1, _READ_BYTES // stored.row_bytes)):
        yield _Copy(stored, part.slices_within(source), piece, part.slices_within(target))

"""Fill rectangles of any layout from a checkpoint of any layout.

Each wanted rectangle is intersected with the stored ones, and only the slices in common are read.
So the plan that reads need not be the plan that wrote.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from rayline.checkpoint.finding import rectangle_of
from rayline.checkpoint.layout import Rectangle
from rayline.errors import CheckpointError
from rayline.parallel.piece import Piece
from rayline.spec import CheckpointManifest, TensorPiece


def read_into(folder: Path, manifest: CheckpointManifest, pieces: Sequence[Piece]) -> None:
    """Fill `data` of every piece in place. Any rank calls it by itself, on a folder that
    `newest_intact` has verified.

    Raises CheckpointError naming the tensor when it is missing or of another shape or element
    type, and naming the file when it cannot be read.
    """
    stored: dict[str, list[TensorPiece]] = defaultdict(list)
    for record in manifest.pieces:
        stored[record.tensor].append(record)
    with ExitStack() as open_files:
        shards: dict[str, Any] = {}
        # Of a tensor without elements nothing is stored.
        for piece in (piece for piece in pieces if 0 not in piece.shape):
            records = stored.get(piece.tensor, [])
            _check_shape(folder, piece, records)
            for record in _overlapping(piece, records):
                path = folder / record.file
                try:
                    if record.file not in shards:
                        opened = safe_open(path, framework="pt")
                        shards[record.file] = open_files.enter_context(opened)
                    _copy(path, shards[record.file], record, piece)
                except (OSError, SafetensorError) as wrong:
                    raise CheckpointError(str(path), f"not readable: {wrong}") from None


def _check_shape(folder: Path, piece: Piece, records: list[TensorPiece]) -> None:
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


def _copy(path: Path, shard: Any, record: TensorPiece, piece: Piece) -> None:
    source, target = rectangle_of(record), _rectangle(piece)
    common = target.overlap(source)
    assert common is not None  # noqa: S101 (only overlapping records come here)
    if common.offset:
        values = shard.get_slice(record.key)[common.slices_within(source)]
    else:
        values = shard.get_tensor(record.key)
    if values.dtype != piece.data.dtype:
        raise CheckpointError(
            piece.tensor,
            f"of element type {piece.data.dtype} in the run, of {values.dtype} in {path}",
            fix="resume with the precision that the checkpoint was written with",
        )
    with torch.no_grad():
        piece.data.detach()[common.slices_within(target)].copy_(values)

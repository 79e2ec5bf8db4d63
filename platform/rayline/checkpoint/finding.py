"""Which checkpoint to go on from: the newest one of which every byte is as it was written.

A damaged checkpoint is passed over with a reason, never used and never the end of a run while an
older intact one stands. A checkpoint of another model is no damage: it stops the run, because
passing it over would train over the folder of another job.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from rayline.checkpoint.folder import (
    Damaged,
    candidates,
    load_manifest,
    regular_size_bytes,
    step_of,
)
from rayline.checkpoint.header import fingerprint_difference
from rayline.checkpoint.layout import Rectangle, tiling_fault
from rayline.checkpoint.location import Location
from rayline.checkpoint.shard import sha256_of
from rayline.checkpoint.stored import NotSafetensors, stored_tensors
from rayline.errors import CheckpointError
from rayline.spec import CheckpointManifest, ShardFile, TensorPiece


@dataclass(frozen=True, slots=True)
class Found:
    """A verified checkpoint."""

    folder: Location
    manifest: CheckpointManifest
    skipped: list[str]
    """Newer checkpoints that were passed over: folder, file and reason, newest first."""


def newest_intact(root: Location, model_fingerprint: str, step: int | None = None) -> Found | None:
    """Verify from the newest step backwards and return the first intact checkpoint; None when there
    is no checkpoint at all. Where `step` is given, only that step's counts.

    Reads every byte of what it verifies, so one process calls it (rank 0 or the driver) and tells
    the others the folder's name; they take `read_manifest(folder)`. Raises CheckpointError when
    checkpoints stand there but none is intact, when one is of another model, or when storage
    behind an address cannot be reached: that says nothing of what lies there.
    """
    skipped: list[str] = []
    for folder in candidates(root):
        if step is not None and step_of(folder) != step:
            continue
        try:
            manifest = load_manifest(folder)
            _check_model(folder, manifest, model_fingerprint)
            check_files(folder, manifest)
        except Damaged as wrong:
            skipped.append(f"{folder.name}: {wrong}")
            continue
        return Found(folder, manifest, skipped)
    if skipped:
        raise CheckpointError(
            str(root),
            "holds no intact checkpoint: " + "; ".join(skipped),
            fix="put an undamaged copy back, or give another output_dir or "
            "checkpoint.directory to start from step 0",
        )
    return None


def _check_model(folder: Location, manifest: CheckpointManifest, wanted: str) -> None:
    if manifest.model_fingerprint != wanted:
        difference = fingerprint_difference(manifest.model_fingerprint, wanted)
        raise CheckpointError(
            str(folder),
            f"a checkpoint of another model: {difference}",
            fix="give the job another output_dir (or checkpoint.directory), or the model that "
            "the checkpoint is of",
        )


def check_sizes(folder: Location, manifest: CheckpointManifest) -> None:
    """Every file stands there with its length; reads no content. Raises Damaged."""
    faults = [fault for file in manifest.files if (fault := _size_fault(folder, file))]
    if faults:
        raise Damaged("; ".join(faults))


def check_files(folder: Location, manifest: CheckpointManifest) -> None:
    """Lengths, hashes, headers and completeness: afterwards the tensors can be read. Raises Damaged
    naming every file that is wrong."""
    check_complete(manifest)
    pieces_of: dict[str, list[TensorPiece]] = defaultdict(list)
    for piece in manifest.pieces:
        pieces_of[piece.file].append(piece)
    faults = [
        fault
        for file in manifest.files
        if (fault := _content_fault(folder, file, pieces_of[file.name]))
    ]
    if faults:
        raise Damaged("; ".join(faults))


def check_complete(manifest: CheckpointManifest) -> None:
    """The pieces of each tensor tile it. Raises Damaged naming the first tensor of which they do
    not."""
    shapes: dict[str, list[int]] = {}
    rectangles: dict[str, list[Rectangle]] = defaultdict(list)
    for piece in manifest.pieces:
        shape = shapes.setdefault(piece.tensor, piece.shape)
        if piece.shape != shape:
            raise Damaged(f"{piece.tensor}: shape {shape} in one piece, {piece.shape} in another")
        if min(shape, default=0) < 0:
            raise Damaged(f"{piece.tensor}: negative size in its shape {shape}")
        rectangles[piece.tensor].append(rectangle_of(piece))
    for tensor, shape in shapes.items():
        if fault := tiling_fault(shape, rectangles[tensor]):
            raise Damaged(f"{tensor}: {fault}")


def rectangle_of(piece: TensorPiece) -> Rectangle:
    """A manifest's piece as a rectangle."""
    return Rectangle(tuple(piece.offset), tuple(piece.extent))


def _size_fault(folder: Location, file: ShardFile) -> str | None:
    try:
        size_bytes = regular_size_bytes(folder / file.name)
    except Damaged as wrong:
        return str(wrong)
    if size_bytes != file.size_bytes:
        return f"{file.name}: {size_bytes} bytes instead of {file.size_bytes}"
    return None


def _content_fault(folder: Location, file: ShardFile, pieces: list[TensorPiece]) -> str | None:
    if fault := _size_fault(folder, file):
        return fault
    shard = folder / file.name
    try:
        if sha256_of(shard) != file.sha256:
            return f"{file.name}: its SHA-256 is not the manifest's"
        held = {key: list(stored.shape) for key, stored in stored_tensors(shard).items()}
    except (OSError, NotSafetensors) as wrong:
        return f"{file.name}: not readable: {wrong}"
    listed = {piece.key: piece.extent for piece in pieces}
    if len(listed) != len(pieces) or held != listed:
        return f"{file.name}: holds other tensors than the manifest lists"
    return None

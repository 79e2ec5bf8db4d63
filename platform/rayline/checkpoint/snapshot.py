"""Snapshots: one rank's whole state in host memory that outlives its process.

    area        = generation 0 | generation 1 | outbox
    generation  = state | step | epoch | head bytes | body bytes | sent | digest | head | body

An area is a file in memory that another process of the same host made and keeps (see
`rayline.actors.keeper`): this rank maps it, copies its tensors there after a step, and may be
killed at any moment. Two generations take turns, so that one is always whole. A generation is
marked as being written before its first byte changes and as whole after its last, and carries a
hash of all of it; what a rank reads back is what it wrote, or is refused.

The copy is plain memory traffic on the step's path: one pass, hashed while it is in the cache
(XXH3, 128 bits: it has to find damage, not malice, at the speed of memory). Everything slower, such
as a second copy on another node or a checkpoint on storage, is made from the area by its keeper.
What is to go to storage has a place of its own, the outbox, where it may stay as long as storage
takes, while the generations go on taking turns.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
import xxhash

from rayline.checkpoint.copying import ALIGNMENT_BYTES, aligned, copy_in, places
from rayline.checkpoint.header import CheckpointHeader
from rayline.errors import CheckpointError
from rayline.parallel.piece import Piece
from rayline.spec import ParallelPlan, SnapshotMark

GENERATIONS = 2
OUTBOX = 2
"""The place behind the generations, in the same form."""
_PLACES = 3
_PREFIX = struct.Struct("<QQQQQQ16s")
"""State, step, epoch, bytes of the head, bytes of the body, whether the keeper has sent it to where
it is wanted, digest of head and body."""
_PREFIX_BYTES = 64
_SENT_AT = 40
_EMPTY, _WRITING, _WHOLE = 0, 1, 2
_HEAD_SPARE_BYTES = 1 << 17
"""Room for what a head says beyond the first one's length: numbers grow, reports are added."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a place of an area holds, verified."""

    header: CheckpointHeader
    reports: list[str]
    """Rank 0's newest reports, in the form that the caller gave them."""
    pieces: list[Piece]


def marks(area: mmap.mmap) -> dict[int, SnapshotMark]:
    """The whole generations of a mapped area, by their number; reads a few bytes."""
    found = {}
    for number in range(GENERATIONS if len(area) >= _PLACES * _PREFIX_BYTES else 0):
        if mark := mark_at(area, number):
            found[number] = mark
    return found


def mark_at(area: mmap.mmap, number: int) -> SnapshotMark | None:
    """What lies at one place, OUTBOX for the outbox; None where nothing whole does."""
    state, step, epoch, *_ = _PREFIX.unpack_from(area, number * (len(area) // _PLACES))
    return SnapshotMark(step, epoch) if state == _WHOLE else None


def newest(area: mmap.mmap) -> int | None:
    """The number of the newest whole generation; None where there is none."""
    found = marks(area)
    return max(found, key=lambda number: (found[number].epoch, found[number].step), default=None)


def is_sent(area: mmap.mmap, number: int) -> bool:
    """Whether a generation stands on another node too, or none is there to have it."""
    at = number * (len(area) // _PLACES) + _SENT_AT
    return bool(struct.unpack_from("<Q", area, at)[0])


def note_sent(area: mmap.mmap, number: int, sent: bool = True) -> None:
    """Let `is_sent` say so, or no longer."""
    struct.pack_into("<Q", area, number * (len(area) // _PLACES) + _SENT_AT, sent)


def clear(area: mmap.mmap, number: int) -> None:
    """Give a place back: what lay there has been taken."""
    struct.pack_into("<Q", area, number * (len(area) // _PLACES), _EMPTY)


def generation_bytes(area: mmap.mmap, number: int) -> memoryview:
    """A whole generation as it lies in the area: what `put_generation` takes. To be released before
    the area is closed."""
    at = number * (len(area) // _PLACES)
    _, _, _, head_bytes, body_bytes, _, _ = _PREFIX.unpack_from(area, at)
    return memoryview(area)[at : at + _PREFIX_BYTES + head_bytes + body_bytes]


def put_generation(file: int, mark: SnapshotMark, generation: memoryview) -> None:
    """Copy another area's generation into the one whose file has the descriptor `file`. Raises
    OSError where there is no memory for it."""
    size_bytes = os.fstat(file).st_size
    if size_bytes // _PLACES < len(generation):
        size_bytes = _resized(file, len(generation))
    with mmap.mmap(file, size_bytes) as area:
        at = _victim(area, mark.step) * (size_bytes // _PLACES)
        _PREFIX.pack_into(area, at, _WRITING, mark.step, mark.epoch, 0, 0, 0, bytes(16))
        # All but the state, which comes last.
        area[at + 8 : at + len(generation)] = generation[8:]
        struct.pack_into("<Q", area, at, _WHOLE)


def _resized(file: int, needed_bytes: int) -> int:
    """Make room for generations of `needed_bytes`; returns the file's new size. What it held is
    forgotten first, so that no mark outlives the layout that it belongs to."""
    capacity = aligned(needed_bytes + _HEAD_SPARE_BYTES, mmap.PAGESIZE)
    os.truncate(file, 0)
    os.truncate(file, _PLACES * capacity)
    # The outbox takes memory once something is posted. What is taken here cannot be missing later,
    # when a store to it would end the process.
    os.posix_fallocate(file, 0, GENERATIONS * capacity)
    return _PLACES * capacity


def _victim(area: mmap.mmap, step: int) -> int:
    """The generation that the state after `step` takes the place of: one of a step that is being
    done again, else one that is not whole, else the older one."""
    found = marks(area)

    def worth(number: int) -> int:
        if number not in found:
            return -1
        return -2 if found[number].step >= step else found[number].step

    return min(range(GENERATIONS), key=worth)


def snapshot_at(area: mmap.mmap, number: int) -> Snapshot | None:
    """What lies whole at one place; None where it is not as it was written. Its pieces are views:
    they are to be gone before the area is closed."""
    at = number * (len(area) // _PLACES)
    _, _, _, head_bytes, body_bytes, _, digest = _PREFIX.unpack_from(area, at)
    begin = at + _PREFIX_BYTES
    with memoryview(area) as view, view[begin : begin + head_bytes + body_bytes] as content:
        if xxhash.xxh3_128(content).digest() != digest:
            return None
        tree = json.loads(bytes(content[:head_bytes]))
    tree["header"]["plan"] = ParallelPlan(**tree["header"]["plan"])
    pieces = [_piece(area, begin + head_bytes, entry) for entry in tree["pieces"]]
    return Snapshot(CheckpointHeader(**tree["header"]), tree["reports"], pieces)


def _piece(area: mmap.mmap, body: int, entry: dict[str, Any]) -> Piece:
    dtype, extent = getattr(torch, entry["dtype"]), entry["extent"]
    data = torch.empty(extent, dtype=dtype)
    if count := data.numel():
        data = torch.frombuffer(area, dtype=dtype, count=count, offset=body + entry["at"])
    return Piece(
        entry["tensor"],
        tuple(entry["shape"]),
        tuple(entry["offset"]),
        data.view(extent),
        entry["owner"],
    )


def _identity(piece: Piece) -> tuple[object, ...]:
    """What tells pieces of one plan apart from each other and from those of other plans."""
    return piece.tensor, tuple(piece.offset), tuple(piece.data.shape), piece.data.dtype


class SnapshotArea:
    """One rank's area, mapped by that rank. Not for use by two threads at once."""

    def __init__(self, path: Path) -> None:
        """Map the file at `path`, which may be empty. Raises CheckpointError where it cannot be."""
        self._path = path
        try:
            self._file = path.open("r+b", buffering=0)
        except OSError as wrong:
            raise self._unusable(f"not there any more: {wrong.strerror}") from None
        self._map: mmap.mmap | None = None
        if size_bytes := os.fstat(self._file.fileno()).st_size:
            self._map = mmap.mmap(self._file.fileno(), size_bytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def mapped(self) -> mmap.mmap | None:
        """The file in memory; None before anything was kept."""
        return self._map

    def close(self) -> None:
        """Unmap; what was kept stays with the keeper."""
        if self._map is not None:
            self._map.close()
            self._map = None
        self._file.close()

    def keep(
        self, header: CheckpointHeader, epoch: int, pieces: Sequence[Piece], reports: Sequence[str]
    ) -> None:
        """Copy every piece, owned or not, into the generation that is not the newest. Raises
        CheckpointError where there is no memory for it."""
        head = _head(header, pieces, reports)
        area = self._roomy(len(head), _body_bytes(pieces))
        self._put(area, _victim(area, header.step), SnapshotMark(header.step, epoch), head, pieces)

    def newest_is_sent(self) -> bool:
        """Whether the keeper has sent the newest generation, so that the older one, which the other
        node may still have in its place, can be done without."""
        number = None if self._map is None else newest(self._map)
        return self._map is None or number is None or is_sent(self._map, number)

    def post(self, header: CheckpointHeader, epoch: int, pieces: Sequence[Piece]) -> bool:
        """Copy the pieces that this rank owns into the outbox, from where they go to storage; False
        where what was posted before still lies there. Raises as `keep`."""
        owned = [piece for piece in pieces if piece.owner]
        head = _head(header, owned, [])
        # As large as the generations, so that neither makes the other's room anew.
        area = self._roomy(len(_head(header, pieces, [])), _body_bytes(pieces))
        if mark_at(area, OUTBOX) is not None:
            return False
        capacity = len(area) // _PLACES
        try:
            os.posix_fallocate(self._file.fileno(), OUTBOX * capacity, capacity)
        except OSError as wrong:
            raise self._unusable(f"no memory for it: {wrong.strerror}") from None
        self._put(area, OUTBOX, SnapshotMark(header.step, epoch), head, owned)
        return True

    def _put(
        self, area: mmap.mmap, number: int, mark: SnapshotMark, head: bytes, pieces: Sequence[Piece]
    ) -> None:
        body_bytes = _body_bytes(pieces)
        at = number * (len(area) // _PLACES)
        _PREFIX.pack_into(area, at, _WRITING, mark.step, mark.epoch, 0, 0, 0, bytes(16))
        digest = xxhash.xxh3_128()
        begin = at + _PREFIX_BYTES
        area[begin : begin + len(head)] = head
        digest.update(head)
        with memoryview(area) as view:
            copy_in(view, begin + len(head), pieces, digest)
        _PREFIX.pack_into(
            area, at, _WRITING, mark.step, mark.epoch, len(head), body_bytes, 0, digest.digest()
        )
        # The mark comes last and is one aligned word: a kill leaves the generation whole or not.
        struct.pack_into("<Q", area, at, _WHOLE)

    def read(self, step: int) -> Snapshot:
        """The generation of `step`; its pieces are views of the area. Raises CheckpointError where
        it is not there, or is not as it was written."""
        area = self._map
        found = {} if area is None else marks(area)
        number = next((number for number, mark in found.items() if mark.step == step), None)
        if area is None or number is None:
            raise self._unusable(f"no whole snapshot of step {step}")
        snapshot = snapshot_at(area, number)
        if snapshot is None:
            raise self._unusable(f"the snapshot of step {step} is not as it was written")
        return snapshot

    def fill(self, snapshot: Snapshot, pieces: Sequence[Piece]) -> None:
        """Fill `data` of every piece. Raises CheckpointError where a piece is not in the snapshot
        with the same place, shape and type."""
        stored = {_identity(piece): piece.data for piece in snapshot.pieces}
        for piece in pieces:
            kept = stored.get(_identity(piece))
            if kept is None:
                raise self._unusable(f"of another plan: it lacks {piece.tensor} as held here")
            with torch.no_grad():
                piece.data.detach().copy_(kept)

    def _roomy(self, head_bytes: int, body_bytes: int) -> mmap.mmap:
        """The map, made large enough; growing it forgets what it held."""
        needed = _PREFIX_BYTES + head_bytes + body_bytes
        if self._map is not None and len(self._map) // _PLACES >= needed:
            return self._map
        if self._map is not None:
            self._map.close()
            self._map = None
        try:
            self._map = mmap.mmap(self._file.fileno(), _resized(self._file.fileno(), needed))
        except OSError as wrong:
            raise self._unusable(f"no memory for it: {wrong.strerror}") from None
        return self._map

    def _unusable(self, problem: str) -> CheckpointError:
        return CheckpointError(f"snapshot area {self._path}", problem)


def _head(header: CheckpointHeader, pieces: Sequence[Piece], reports: Sequence[str]) -> bytes:
    """Everything but the tensors, padded so that the body begins aligned behind prefix and head."""
    told: dict[str, Any] = asdict(header) | {"plan": header.plan.model_dump()}
    entries = [
        {
            "tensor": piece.tensor,
            "shape": list(piece.shape),
            "offset": list(piece.offset),
            "extent": list(piece.data.shape),
            "dtype": str(piece.data.dtype).removeprefix("torch."),
            "owner": piece.owner,
            "at": at,
        }
        for piece, at in places(pieces)
    ]
    tree = {"header": told, "pieces": entries, "reports": list(reports)}
    text = json.dumps(tree, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % ALIGNMENT_BYTES)


def _body_bytes(pieces: Sequence[Piece]) -> int:
    return sum(aligned(piece.data.nbytes) for piece in pieces)

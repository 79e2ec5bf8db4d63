"""Tensors into host memory, hashed on the way: the part of a snapshot that is on the step's path.

A chunk is copied and hashed while it is in the core's cache. What lies on a GPU goes through two
page-locked buffers: while the card fills one of them, the other is put in its place. Into memory
that is not page-locked a card sends a third as fast, and the area cannot be: others map it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import xxhash

from rayline.parallel.piece import Piece

ALIGNMENT_BYTES = 64
_CHUNK_BYTES = 1 << 18
"""Copied and hashed at a time: what stays in a core's cache meanwhile."""
_STAGED_BYTES = 1 << 24
"""Sent by a GPU at a time: long enough that starting it costs nothing beside it."""


def aligned(size_bytes: int, unit_bytes: int = ALIGNMENT_BYTES) -> int:
    """The next multiple of `unit_bytes`."""
    return -(-size_bytes // unit_bytes) * unit_bytes


def places(pieces: Sequence[Piece]) -> Iterator[tuple[Piece, int]]:
    """Each piece with where it begins in the body."""
    at = 0
    for piece in pieces:
        yield piece, at
        at = aligned(at + piece.data.nbytes)


def copy_in(view: memoryview, begin: int, pieces: Sequence[Piece], digest: xxhash.xxh3_128) -> None:
    """Copy the pieces behind `begin`, and feed the digest what now lies there, padding included."""
    staging: _Staging | None = None
    for piece, at in places(pieces):
        first = begin + at
        end = first + aligned(piece.data.nbytes)
        if piece.data.numel():
            flat = piece.data.detach().reshape(-1).view(torch.uint8)
            target = torch.frombuffer(
                view, dtype=torch.uint8, count=piece.data.nbytes, offset=first
            )
            if flat.is_cuda:
                staging = staging or _Staging(flat.device)
                arrived = staging.parts(flat)
            else:
                arrived = iter((flat,))
            low = first
            for chunk in (chunk for part in arrived for chunk in part.split(_CHUNK_BYTES)):
                high = low + chunk.numel()
                target[low - first : high - first].copy_(chunk)
                digest.update(view[low:high])
                low = high
        digest.update(view[first + piece.data.nbytes : end])


class _Staging:
    """Two page-locked buffers that a GPU fills by turns."""

    def __init__(self, device: torch.device) -> None:
        self._buffers = [
            torch.empty(_STAGED_BYTES, dtype=torch.uint8, pin_memory=True) for _ in "ab"
        ]
        self._sent = [torch.cuda.Event(), torch.cuda.Event()]
        self._device = device

    def parts(self, flat: torch.Tensor) -> Iterator[torch.Tensor]:
        """The bytes of `flat`, on the host, in order; each part is good until the next is asked
        for."""
        parts = flat.split(_STAGED_BYTES)
        self._send(parts, 0)
        for number, part in enumerate(parts):
            self._send(parts, number + 1)
            self._sent[number % 2].synchronize()
            yield self._buffers[number % 2][: part.numel()]

    def _send(self, parts: Sequence[torch.Tensor], number: int) -> None:
        if number < len(parts):
            with torch.cuda.device(self._device):
                part = parts[number]
                self._buffers[number % 2][: part.numel()].copy_(part, non_blocking=True)
                self._sent[number % 2].record()

"""Tensors in a shard: what its header says of them, and any rectangle without the rest of the file.

The library that reads safetensors maps a local file; a shard behind an address is not one. So the
header, which is JSON (see `shard` for the format), is read here, and believed only where every
tensor's type, shape and place in the file go together.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from typing import Any

import torch

from rayline.checkpoint.location import Location, read_range, size_bytes
from rayline.checkpoint.shard import DTYPES, LENGTH_BYTES

_HEADER_LIMIT_BYTES = 100_000_000
"""The format's own limit."""
_DTYPE_OF = {name: dtype for dtype, name in DTYPES.items()}


class NotSafetensors(Exception):
    """The file is not of the format; the text says why."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a shard."""

    file: Location
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    """Byte of the file where its data begins."""

    @property
    def row_bytes(self) -> int:
        """Of what has the same place along the first dim."""
        return self.dtype.itemsize * prod(self.shape[1:])

    def part(self, places: tuple[slice, ...]) -> torch.Tensor:
        """The part at `places`, one slice for each dim; only the rows that it lies in are read.
        Raises OSError."""
        rows = places[0] if places else slice(0, 1)
        first = self.begin + rows.start * self.row_bytes
        last = self.begin + rows.stop * self.row_bytes
        content = read_range(self.file, first, last)
        whole_rows = torch.frombuffer(content, dtype=self.dtype)
        if not places:
            return whole_rows.view(())
        return whole_rows.view(-1, *self.shape[1:])[(slice(None), *places[1:])]


def stored_tensors(file: Location) -> dict[str, StoredTensor]:
    """What a shard holds, by key. Raises OSError, or NotSafetensors."""
    file_bytes = size_bytes(file)
    if file_bytes < LENGTH_BYTES:
        raise NotSafetensors("too short for a header")
    header_bytes = int.from_bytes(read_range(file, 0, LENGTH_BYTES), "little")
    begin = LENGTH_BYTES + header_bytes
    if header_bytes > _HEADER_LIMIT_BYTES or begin > file_bytes:
        raise NotSafetensors(f"a header of {header_bytes} bytes")
    try:
        tree = json.loads(bytes(read_range(file, LENGTH_BYTES, begin)))
        tree.pop("__metadata__", None)
        return {key: _tensor(file, begin, file_bytes, entry) for key, entry in tree.items()}
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as wrong:
        raise NotSafetensors(f"{type(wrong).__name__} in its header: {wrong}") from None


def _tensor(file: Location, data: int, file_bytes: int, entry: dict[str, Any]) -> StoredTensor:
    """One entry of a header, of which nothing is known yet; raises as a tree of other types does,
    and ValueError where its parts do not go together."""
    dtype, shape, offsets = _DTYPE_OF[entry["dtype"]], entry["shape"], entry["data_offsets"]
    begin, end = offsets
    if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
        raise ValueError("a size below zero, or none at all")
    if end - begin != prod(shape) * dtype.itemsize or data + end > file_bytes:
        raise ValueError(f"{shape} of {entry['dtype']} at {begin} to {end}")
    return StoredTensor(file, dtype, tuple(shape), data + begin)

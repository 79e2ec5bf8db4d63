"""One safetensors file, written and hashed in a single pass, one tensor in memory at a time.

The format is safetensors 0.x (https://huggingface.co/docs/safetensors): eight bytes with the
header's length, a JSON header, the data without gaps. It is written here rather than by the
library because the library takes all tensors as one dict of bytes: twice a rank's state in memory.
It is always read with the library.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from rayline.spec import ShardFile

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
HEADER_ALIGNMENT_BYTES = 8
"""The format's: data then begins where any element type may begin."""


def storable(dtype: torch.dtype) -> bool:
    """Whether a shard can hold tensors of this type."""
    return dtype in _DTYPES


def write_shard(path: Path, tensors: Sequence[tuple[str, torch.Tensor]]) -> ShardFile:
    """Write key-tensor pairs to a new file and bring it to storage. Tensors may lie on any device
    and be views. Raises OSError."""
    # Widest elements first, so that every tensor begins on a multiple of its element size.
    ordered = sorted(tensors, key=lambda pair: -pair[1].element_size())
    digest = hashlib.sha256()
    with path.open("xb") as file:
        head = _header(ordered)
        digest.update(head)
        file.write(head)
        for _, tensor in ordered:
            whole = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(whole.numpy().data)
            file.write(whole.numpy().data)
        file.flush()
        os.fsync(file.fileno())
        size_bytes = file.tell()
    return ShardFile(name=path.name, size_bytes=size_bytes, sha256=digest.hexdigest())


def sha256_of(path: Path) -> str:
    """Hash of a whole file. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _header(tensors: Sequence[tuple[str, torch.Tensor]]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for key, tensor in tensors:
        end = begin + tensor.numel() * tensor.element_size()
        entries[key] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
        begin = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % HEADER_ALIGNMENT_BYTES)
    return len(text).to_bytes(8, "little") + text

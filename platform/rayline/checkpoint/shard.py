"""One safetensors file, written and hashed in a single pass, one tensor in memory at a time.

The format is safetensors 0.x (https://huggingface.co/docs/safetensors): eight bytes with the
header's length, a JSON header, the data without gaps. It is written here rather than by the
library because the library takes all tensors as one dict of bytes: twice a rank's state in memory.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence

import torch

from rayline.checkpoint.location import Location, to_read, to_write
from rayline.checkpoint.throttle import Throttle
from rayline.spec import ShardFile

DTYPES = {
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
"""What the format calls each element type."""
LENGTH_BYTES = 8
"""What says how long the header is, little-endian."""
HEADER_ALIGNMENT_BYTES = 8
"""The format's: data then begins where any element type may begin."""
_CHUNK_BYTES = 8 << 20
"""What is hashed and written at a time; a tensor may be larger than what storage buffers."""


def storable(dtype: torch.dtype) -> bool:
    """Whether a shard can hold tensors of this type."""
    return dtype in DTYPES


def write_shard(
    file: Location, tensors: Sequence[tuple[str, torch.Tensor]], throttle: Throttle
) -> ShardFile:
    """Write key-tensor pairs to a new file and bring it to storage. Tensors may lie on any device
    and be views. Raises OSError, or CheckpointError behind an address."""
    # Widest elements first, so that every tensor begins on a multiple of its element size.
    ordered = sorted(tensors, key=lambda pair: -pair[1].element_size())
    digest = hashlib.sha256()
    written_bytes = 0
    with to_write(file) as opened:
        for chunk in _chunks(ordered):
            digest.update(chunk)
            opened.write(chunk)
            written_bytes += len(chunk)
            throttle.wrote(len(chunk))
    return ShardFile(name=file.name, size_bytes=written_bytes, sha256=digest.hexdigest())


def _chunks(tensors: Sequence[tuple[str, torch.Tensor]]) -> Iterator[bytes | memoryview]:
    """The whole file, header first."""
    yield _header(tensors)
    for _, tensor in tensors:
        whole = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
        for begin in range(0, len(whole), _CHUNK_BYTES):
            yield whole[begin : begin + _CHUNK_BYTES]


def sha256_of(file: Location) -> str:
    """Hash of a whole file. Raises OSError, or CheckpointError behind an address."""
    with to_read(file) as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _header(tensors: Sequence[tuple[str, torch.Tensor]]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for key, tensor in tensors:
        end = begin + tensor.numel() * tensor.element_size()
        entries[key] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
        begin = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % HEADER_ALIGNMENT_BYTES)
    return len(text).to_bytes(LENGTH_BYTES, "little") + text

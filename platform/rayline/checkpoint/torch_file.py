"""The one place where a file that torch.save wrote is read.

Such a file is a zip archive with a pickle in it, and a pickle names functions that reading it
calls. So it is looked through before it is read, without calling anything: it may name what
tensors and containers are made of and nothing else, whatever the process has allowed elsewhere.
What remains is read with `weights_only=True`, which calls nothing else either, and mapped instead
of copied, so that no file can claim more memory than it has bytes.
"""

from __future__ import annotations

import pickletools
import zipfile
from pathlib import Path
from pickle import UnpicklingError

import torch

from rayline.checkpoint.folder import Damaged, regular_size_bytes
from rayline.errors import CheckpointError

_PICKLE_LIMIT_BYTES = 1 << 28
"""Of names, shapes and numbers; the tensors lie beside the pickle."""
_STORED_TYPES = ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte")
_HARMLESS = frozenset(
    {
        "collections.OrderedDict",
        "__builtin__.set",
        "builtins.set",
        "torch.Size",
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_tensor_v2",
        "torch.BoolStorage",
        *(f"torch.{kind}Storage" for kind in _STORED_TYPES),
        *("torch.float64", "torch.float32", "torch.float16", "torch.bfloat16"),
    }
)
_NAMES = frozenset({"GLOBAL", "INST"})
_NAMES_UNTOLD = frozenset({"STACK_GLOBAL", "EXT1", "EXT2", "EXT4"})
"""Codes that name a function by what was computed before; torch.save writes none of them."""


def read_torch_file(path: Path) -> object:
    """What torch.save wrote: tensors on the CPU, mapped from the file, in plain containers. Raises
    CheckpointError where the file is missing, torn, or names anything that could run."""
    try:
        regular_size_bytes(path)
        named = _named(_pickle_in(path))
    except (Damaged, OSError, ValueError, zipfile.BadZipFile) as wrong:
        raise _unusable(path, f"not a file that torch.save wrote: {wrong}") from None
    if refused := sorted(named - _HARMLESS):
        raise CheckpointError(
            str(path),
            f"names {', '.join(refused)}: reading it could run code, so it is not read",
            allowed="tensors, numbers, text, and lists and dicts of them",
            fix="write it anew without such objects (client_state holds what was handed over)",
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, ValueError, UnpicklingError) as wrong:
        first = str(wrong).partition("\n")[0]
        raise _unusable(path, f"not readable as plain tensors: {first}") from None


def _pickle_in(path: Path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        # Packed ones could grow to any size.
        if any(record.compress_type != zipfile.ZIP_STORED for record in records):
            raise ValueError("its records are compressed")
        pickles = [record for record in records if record.filename.endswith(".pkl")]
        if len(pickles) != 1 or not pickles[0].filename.endswith("/data.pkl"):
            raise ValueError("it holds other pickles than one data.pkl")
        if pickles[0].file_size > _PICKLE_LIMIT_BYTES:
            raise ValueError(f"its pickle is larger than {_PICKLE_LIMIT_BYTES} bytes")
        return archive.read(pickles[0])


def _named(pickled: bytes) -> set[str]:
    """Every class and function that a pickle names. Raises ValueError for a torn one."""
    found = set()
    for code, argument, _ in pickletools.genops(pickled):
        if code.name in _NAMES:
            found.add(str(argument).replace(" ", "."))
        elif code.name in _NAMES_UNTOLD:
            found.add(f"something by {code.name}")
    return found


def _unusable(path: Path, problem: str) -> CheckpointError:
    return CheckpointError(str(path), problem, fix="put an undamaged copy back")

"""Files and the SHA-256 that they are known by."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from rayline.errors import CheckpointError

_CHUNK_BYTES = 8 * 2**20


def check_hashes(folder: Path, hashes: Mapping[str, str], owner: str) -> None:
    """Raise CheckpointError naming the first file that is missing or differs from its hash; `owner`
    is what the files belong to."""
    for name, wanted in sorted(hashes.items()):
        file = folder / name
        if not file.is_file():
            raise CheckpointError(
                str(file),
                f"this file of {owner} is missing",
                fix="export and register the model again",
            )
        found = sha256(file)
        if found != wanted:
            raise CheckpointError(
                str(file),
                f"differs from the hash that {owner} was verified with",
                value=found,
                allowed=wanted,
                fix="restore the file, or export and register the model again",
            )


def sha256(file: Path) -> str:
    """Of a file's whole content."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()

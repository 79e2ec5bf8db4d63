"""What of a folder travels to the cluster with a job, and whether it is too much.

Ray packs a job's working directory by rules of its own (.gitignore, .rayignore, a list of folders)
and refuses more than 100 MiB without naming a file. The rules have no public form, so Ray's own
walk is used here, and only here (ray._private.runtime_env.packaging, Ray 2.60);
tests/launch/test_working_dir.py holds it.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from ray._private.ray_constants import get_runtime_env_default_excludes
from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

from rayline.errors import SpecError

LIMIT_BYTES = 100 * 2**20
"""Largest package that Ray keeps for a job, packed (Ray's GCS_STORAGE_MAX_SIZE)."""
_NAMED = 5
_quiet = logging.getLogger(f"{__name__}.walk")
_quiet.setLevel(logging.WARNING)
_CHUNK_BYTES = 2**20
_PIECES = 16
_PIECE_BYTES = 2**15
_DOUBT = 0.3
"""As a share of the limit, how far off it an estimate has to be to be believed."""


@dataclass(frozen=True, slots=True)
class TravellingFile:
    """One file that goes along."""

    path: Path
    """Relative to the folder."""
    size_bytes: int


def travelling_files(folder: Path) -> list[TravellingFile]:
    """What Ray would pack of `folder`, the largest first."""
    found: list[TravellingFile] = []

    def note(path: Path) -> None:
        if path.is_file():
            found.append(TravellingFile(path.relative_to(root), path.stat().st_size))

    root = folder.absolute()
    excludes = [_get_excludes(root, get_runtime_env_default_excludes())]
    _dir_travel(root, excludes, note, include_gitignore=True, logger=_quiet)
    return sorted(found, key=lambda file: (-file.size_bytes, str(file.path)))


def refuse_too_large(folder: Path, limit_bytes: int = LIMIT_BYTES) -> int:
    """The bytes of `folder` that would travel, unpacked. Raises SpecError naming the largest files
    where they exceed `limit_bytes` even packed."""
    files = travelling_files(folder)
    size_bytes = sum(file.size_bytes for file in files)
    if size_bytes > limit_bytes and _packed_beyond(folder, files, limit_bytes):
        named = ", ".join(f"{file.path} {_mib(file.size_bytes)}" for file in files[:_NAMED])
        raise SpecError(
            "working_dir",
            f"{_mib(size_bytes)} in {len(files)} files; the largest: {named}",
            value=str(folder),
            allowed=f"{_mib(limit_bytes)} packed",
            fix="name what the job does not need in .rayignore, and keep data and weights on "
            "storage that the cluster sees",
        )
    return size_bytes


def _packed_beyond(folder: Path, files: Sequence[TravellingFile], limit_bytes: int) -> bool:
    """Whether the files, packed as Ray does (deflate), come to more than the limit. Where a sample
    of each file leaves no doubt, the rest is not packed: that takes a while."""
    estimate_bytes = sum(_estimated_bytes(folder / file.path, file.size_bytes) for file in files)
    if abs(estimate_bytes - limit_bytes) > _DOUBT * limit_bytes:
        return estimate_bytes > limit_bytes
    packed_bytes = 0
    for file in files:
        packer = zlib.compressobj()
        with (folder / file.path).open("rb") as stream:
            while chunk := stream.read(_CHUNK_BYTES):
                packed_bytes += len(packer.compress(chunk))
                if packed_bytes > limit_bytes:
                    return True
        packed_bytes += len(packer.flush())
    return packed_bytes > limit_bytes


def _estimated_bytes(path: Path, size_bytes: int) -> float:
    """What a file comes to when it is packed, by pieces that lie evenly over it."""
    taken = b""
    with path.open("rb") as stream:
        for piece in range(_PIECES):
            stream.seek(piece * size_bytes // _PIECES)
            taken += stream.read(min(_PIECE_BYTES, ceil(size_bytes / _PIECES)))
    return size_bytes * len(zlib.compress(taken)) / len(taken) if taken else 0.0


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:.1f} MiB"

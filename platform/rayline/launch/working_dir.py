"""What of a folder travels to the cluster with a job, whether it is too much, and its package.

The rules are those by which Ray packs a job's working directory (ray._private.runtime_env.
packaging, Ray 2.60): .gitignore and .rayignore of each folder, and a list of folders that never
travel. They have no public form, so they stand here once more; tests/launch/test_working_dir.py
holds both against each other. Ray does not compress its packages, and refuses more than 100 MiB
without naming a file.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from pathspec import PathSpec

from rayline.errors import SpecError

LIMIT_BYTES = 100 * 2**20
"""Largest package that Ray keeps for a job, packed (Ray's GCS_STORAGE_MAX_SIZE)."""
_NEVER = (".git", ".venv", "venv", "__pycache__")
"""Ray's RAY_RUNTIME_ENV_DEFAULT_EXCLUDES."""
_IGNORE_FILES = (".gitignore", ".rayignore")
_NAMED = 5
_CHUNK_BYTES = 2**20
_PIECES = 16
_PIECE_BYTES = 2**15
_DOUBT = 0.3
"""As a share of the limit, how far off it an estimate has to be to be believed."""

Excludes = Callable[[Path], bool]


@dataclass(frozen=True, slots=True)
class TravellingFile:
    """One file that goes along."""

    path: Path
    """Relative to the folder."""
    size_bytes: int


def travelling_files(folder: Path) -> list[TravellingFile]:
    """What goes along of `folder`, the largest first."""
    root = folder.absolute()
    found = [
        TravellingFile(path.relative_to(root), path.stat().st_size)
        for path in _walk(root, [_excludes(root, _NEVER)])
        if path.is_file()
    ]
    return sorted(found, key=lambda file: (-file.size_bytes, str(file.path)))


def packed(folder: Path) -> tuple[str, bytes]:
    """What travels of `folder` as a zip file: its name, made of its content as Ray names packages,
    and the file. Call `refuse_too_large` before: it is held in memory."""
    digest, whole = hashlib.sha1(usedforsecurity=False), io.BytesIO()
    with zipfile.ZipFile(
        whole, "w", zipfile.ZIP_DEFLATED, compresslevel=6, strict_timestamps=False
    ) as package:
        for file in sorted(travelling_files(folder), key=lambda file: str(file.path)):
            content = (folder / file.path).read_bytes()
            digest.update(f"{file.path}\0{len(content)}\0".encode())
            digest.update(content)
            package.write(folder / file.path, file.path)
    return f"_ray_pkg_{digest.hexdigest()}.zip", whole.getvalue()


def _walk(path: Path, excluding: Sequence[Excludes]) -> Iterator[Path]:
    """`path` and everything below it that no rule keeps back."""
    lists = [path / name for name in _IGNORE_FILES if (path / name).is_file()]
    rules = [
        *excluding,
        *(_excludes(path, file.read_text(encoding="utf-8").splitlines()) for file in lists),
    ]
    if any(rule(path) for rule in rules):
        return
    yield path
    if path.is_dir():
        for below in sorted(path.iterdir()):
            yield from _walk(below, rules)


def _excludes(base: Path, patterns: Sequence[str]) -> Excludes:
    """Whether a path below `base` is one of the patterns, which are git's."""
    spec = PathSpec.from_lines("gitignore", patterns)
    return lambda path: bool(spec.match_file(str(path.relative_to(base))))


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
    """Whether the files, packed, come to more than the limit. Where a sample
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

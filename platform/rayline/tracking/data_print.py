"""The fingerprint of data: which files, how large, and a hash of what is in them.

A file of up to 1 MiB is hashed whole; of a larger one its size and 16 pieces of 64 KiB, evenly
spread from its first byte to its last, so that terabytes cost milliseconds. A change that keeps the
size and lies between the pieces is not seen: the fingerprint says which data a run read, and is no
proof against tampering. Of a file in a bucket its size and what the store calls its version (ETag
or time of change) are taken; nothing is fetched.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

WHOLE_BYTES = 2**20
PIECES = 16
PIECE_BYTES = 64 * 2**10
_VERSION_KEYS = ("ETag", "etag", "md5Hash", "LastModified", "last_modified", "mtime")
_SHOWN = 200


@dataclass(frozen=True, slots=True)
class DataFile:
    """One file of the data."""

    path: str
    size_bytes: int
    print: str
    """Hash of its content, sampled where it is large; what its store says, in a bucket."""


@dataclass(frozen=True, slots=True)
class DataPrint:
    """All files of one source of data."""

    files: tuple[DataFile, ...]

    @property
    def digest(self) -> str:
        """32 hex digits over all contents and sizes; names do not count, so a copy has the same."""
        told = [[file.size_bytes, file.print] for file in self.files]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]

    @property
    def size_bytes(self) -> int:
        """Of all files."""
        return sum(file.size_bytes for file in self.files)

    def profile(self) -> str:
        """What MLflow keeps of it: JSON with the first 200 files."""
        shown = [asdict(file) for file in self.files[:_SHOWN]]
        tree = {"files": len(self.files), "bytes": self.size_bytes, "first_files": shown}
        return json.dumps(tree)


def data_print(sources: Sequence[str]) -> DataPrint:
    """Look at files, folders and addresses that fsspec knows. Raises OSError where one cannot be
    read, and what its store raises."""
    return DataPrint(tuple(found for source in sources for found in _files(source)))


def _files(source: str) -> Iterator[DataFile]:
    if "://" in source:
        yield from _stored(source)
        return
    path = Path(source).expanduser()
    inside = sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]
    for file in inside:
        size_bytes = file.stat().st_size
        yield DataFile(str(file), size_bytes, _sampled(file, size_bytes))


def _sampled(file: Path, size_bytes: int) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        if size_bytes <= WHOLE_BYTES:
            digest.update(stream.read())
        else:
            last = size_bytes - PIECE_BYTES
            for piece in range(PIECES):
                stream.seek(piece * last // (PIECES - 1))
                digest.update(stream.read(PIECE_BYTES))
    return digest.hexdigest()


def _stored(address: str) -> Iterator[DataFile]:
    import fsspec

    system, path = fsspec.core.url_to_fs(address)
    found = system.find(path, detail=True) or {path: system.info(path)}
    for name, entry in sorted(found.items()):
        version = next((str(entry[key]) for key in _VERSION_KEYS if entry.get(key)), "")
        yield DataFile(str(name), int(entry.get("size") or 0), version)

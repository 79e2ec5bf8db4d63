"""TokenCache: token shards on disk, found by what they were made from.

A file's shards lie in a folder named by the hash of its content, of the tokenizer and of what else
decides the tokens; so whatever is changed has another name, and nothing is ever out of date. A
folder is written beside its place, its manifest last, and then renamed: it is whole or not there.
Of several processes that make the same one, one's is kept. What is damaged is made anew.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rayline.data.corpus import TokenShard
from rayline.data.storage import StoredFile

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
SMALL_BYTES = 64 * 2**20
"""Up to this size contents are hashed at every start; of what is larger, the driver hashes the
shards once, and a source's hash is remembered for as long as its storage calls it unchanged."""
_MANIFEST = "manifest.json"
_ARRAYS = ("tokens", "learnt", "stops", "places", "digests")
_NO_TOKENIZER = (".safetensors", ".bin", ".gguf", ".pt", ".index.json")
_READ_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """One array of a shard on disk."""

    name: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class CachedShards:
    """A file's shards, mapped into memory."""

    shards: tuple[TokenShard, ...]
    pad_id: int
    """What fills the end of a short sequence."""


@dataclass(frozen=True, slots=True)
class TokenCache:
    """The folders below one folder."""

    directory: Path

    def key(self, source: StoredFile, kind: str, tokenizer_dir: Path) -> str:
        """The name of the folder that `source` has. Raises OSError where it can't be read."""
        told = [FORMAT_VERSION, kind, self._source_digest(source), _tokenizer_digest(tokenizer_dir)]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]

    def find(self, key: str, *, verify: bool) -> CachedShards | None:
        """The shards of that name; None where they are not there or damaged. `verify` hashes large
        ones too."""
        folder = self.directory / key
        try:
            manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
            files = [WrittenFile(**entry) for entry in manifest["files"]]
            total_bytes = sum(file.size_bytes for file in files)
            for file in files:
                _check(folder, file, verify=verify or total_bytes <= SMALL_BYTES)
            numbers = range(manifest["shards"])
            shards = tuple(_mapped(folder, number) for number in numbers)
            return CachedShards(shards, int(manifest["pad_id"]))
        except FileNotFoundError as missing:
            if Path(str(missing.filename)).name == _MANIFEST and not folder.exists():
                return None
            log.warning("token shards in %s are damaged and made anew: %s", folder, missing)
        except (OSError, ValueError, KeyError, TypeError) as damage:
            log.warning("token shards in %s are damaged and made anew: %s", folder, damage)
        return None

    @contextmanager
    def writing(self, key: str) -> Iterator[Path]:
        """A folder to write the shards of that name into, gone at the end unless `commit` took
        it."""
        folder = self.directory / f".writing-{key}-{uuid.uuid4().hex[:8]}"
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def commit(
        self, key: str, folder: Path, shards: Sequence[Sequence[WrittenFile]], pad_id: int
    ) -> None:
        """Let `folder`, which holds these files, have its name, unless an intact one has it."""
        files = [asdict(file) for shard in shards for file in shard]
        manifest = {
            "format": FORMAT_VERSION,
            "shards": len(shards),
            "pad_id": pad_id,
            "files": files,
        }
        _write(folder / _MANIFEST, json.dumps(manifest, indent=1).encode())
        _sync(folder)
        while True:
            try:
                folder.rename(self.directory / key)
            except OSError:
                if not (self.directory / key).exists():
                    raise
                if self.find(key, verify=True) is not None:
                    return
                self._set_aside(key)
            else:
                _sync(self.directory)
                return

    def _set_aside(self, key: str) -> None:
        """Take a damaged folder away; processes that have mapped it keep what they see."""
        aside = self.directory / f".writing-{key}-{uuid.uuid4().hex[:8]}"
        try:
            (self.directory / key).rename(aside)
        except FileNotFoundError:
            return  # another process was faster
        shutil.rmtree(aside, ignore_errors=True)

    def _source_digest(self, source: StoredFile) -> str:
        """Of the contents of a file, or of all files of a folder."""
        digests = []
        for file in source.files_below():
            if file.size_bytes() <= SMALL_BYTES:
                digests.append(_digest(file))
                continue
            version = json.dumps([file.path, file.version()])
            note = self.directory / "sources" / hashlib.sha256(version.encode()).hexdigest()[:32]
            if not note.exists():
                note.parent.mkdir(parents=True, exist_ok=True)
                written = note.with_name(f"{note.name}-{uuid.uuid4().hex[:8]}")
                _write(written, _digest(file).encode())
                written.rename(note)
            digests.append(note.read_text(encoding="ascii"))
        return hashlib.sha256("".join(digests).encode()).hexdigest()


def write_shard(shard: TokenShard, folder: Path, number: int) -> list[WrittenFile]:
    """Write one shard's arrays, each on disk for good when it returns."""
    written = []
    for array in _ARRAYS:
        file = folder / _name(number, array)
        with file.open("wb") as stream:
            np.save(stream, getattr(shard, array), allow_pickle=False)
            stream.flush()
            os.fsync(stream.fileno())
        stored = StoredFile(str(file), str(file))
        written.append(WrittenFile(file.name, stored.size_bytes(), _digest(stored)))
    return written


def _name(number: int, array: str) -> str:
    return f"{number:05d}-{array}.npy"


def _mapped(folder: Path, number: int) -> TokenShard:
    arrays = {name: _map(folder / _name(number, name)) for name in _ARRAYS}
    return TokenShard(**arrays)


def _map(file: Path) -> Any:
    # Nothing can be mapped of an array without elements.
    try:
        return np.load(file, mmap_mode="r", allow_pickle=False)
    except ValueError:
        return np.load(file, allow_pickle=False)


def _check(folder: Path, file: WrittenFile, *, verify: bool) -> None:
    path = folder / file.name
    stored = StoredFile(str(path), str(path))
    if stored.size_bytes() != file.size_bytes:
        raise ValueError(f"{file.name} has {stored.size_bytes()} bytes, not {file.size_bytes}")
    if verify and _digest(stored) != file.sha256:
        raise ValueError(f"{file.name} has another content than it was written with")


def _digest(file: StoredFile) -> str:
    found = hashlib.sha256()
    with file.open() as stream:
        while block := stream.read(_READ_BYTES):
            found.update(block)
    return found.hexdigest()


def _tokenizer_digest(directory: Path) -> str:
    """Of every file of a model folder that may have a part in tokenizing, and of the libraries."""
    told = [importlib.metadata.version(name) for name in ("tokenizers", "transformers")]
    for file in sorted(directory.iterdir()):
        if file.is_file() and not file.name.endswith(_NO_TOKENIZER):
            told += [file.name, _digest(StoredFile(str(file), str(file)))]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def _write(file: Path, content: bytes) -> None:
    with file.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

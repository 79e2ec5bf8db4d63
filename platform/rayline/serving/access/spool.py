"""Spool: where usage rows wait on disk while the store is away.

One file a gateway, one JSON object a line, locked while its gateway lives. What a gateway that died
has left, the next one on this machine takes over.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import uuid
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from rayline.serving.access.usage import UsageRow

logger = logging.getLogger(__name__)

_SUFFIX = ".jsonl"
_BATCH_ROWS = 500


class Spool:
    """A bounded file of rows in `folder`. Belongs to one thread; OSError passes through."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._max_bytes = max_bytes
        self._left_behind = _take_over(folder)
        self._path, self._file = _own_file(folder)
        self._written_bytes = 0

    @property
    def waiting(self) -> bool:
        """Whether rows wait here."""
        return bool(self._left_behind) or self._size_bytes() > self._written_bytes

    def keep(self, rows: Sequence[UsageRow]) -> int:
        """Add rows, on disk when it returns; how many of them there was no place for."""
        size_bytes = self._size_bytes()
        lines = bytearray()
        kept = 0
        for row in rows:
            line = json.dumps(row.as_dict()).encode() + b"\n"
            if size_bytes + len(lines) + len(line) > self._max_bytes:
                break
            lines += line
            kept += 1
        self._file.seek(0, os.SEEK_END)
        self._file.write(lines)
        self._file.flush()
        os.fsync(self._file.fileno())
        return len(rows) - kept

    def batches(self) -> Iterator[list[UsageRow]]:
        """All rows that wait, oldest first. A batch is given up when the next one is asked for: who
        could not write one does not ask, and gets it again the next time."""
        while self._left_behind:
            file = self._left_behind[0]
            file.seek(0)
            while batch := _read_batch(file):
                yield batch
            Path(file.name).unlink()
            self._left_behind.pop(0).close()
        self._file.seek(self._written_bytes)
        while batch := _read_batch(self._file):
            end_bytes = self._file.tell()
            yield batch
            self._written_bytes = end_bytes
        self._file.truncate(0)
        self._written_bytes = 0

    def close(self) -> None:
        """Let go of the file; it goes where it is empty."""
        if not self.waiting:
            self._path.unlink(missing_ok=True)
        for file in (self._file, *self._left_behind):
            file.close()

    def _size_bytes(self) -> int:
        return os.fstat(self._file.fileno()).st_size


def _own_file(folder: Path) -> tuple[Path, BinaryIO]:
    """A new file, locked before it has a name under which another could take it over."""
    draft = folder / f"{uuid.uuid4().hex}.draft"
    draft.touch(mode=0o600)
    file = draft.open("r+b")
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return draft.rename(draft.with_suffix(_SUFFIX)), file


def _take_over(folder: Path) -> list[BinaryIO]:
    """The files whose gateways live no more."""
    found: list[BinaryIO] = []
    for path in sorted(folder.glob(f"*{_SUFFIX}")):
        try:
            file = path.open("r+b")
        except FileNotFoundError:
            continue  # another gateway was faster
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            continue
        found.append(file)
    return found


def _read_batch(file: BinaryIO) -> list[UsageRow]:
    """The next rows; empty at the end. A line that a crash tore is left out."""
    rows: list[UsageRow] = []
    while not rows:
        lines = list(islice(iter(file.readline, b""), _BATCH_ROWS))
        if not lines:
            break
        for line in lines:
            try:
                rows.append(UsageRow(**json.loads(line)))
            except (ValueError, TypeError):
                logger.warning("usage: a torn line of %s is left out", file.name)
    return rows

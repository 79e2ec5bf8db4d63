"""Rows that wait for the tracking store, on disk, so that no end of a driver loses them.

    FOLDER/tracking/KEY/            one start of a job
        run.json                    which run of which store, how it ended once it has
        rows-00000.jsonl ...        rows in order, one a line; a file is deleted once it was sent
        sent.json                   how far the store has them
        files/                      copies of artifacts that wait

A row is appended before anything else is done with it. What was sent and not noted yet is sent
again, which changes nothing: MLflow's tables hold a point of a metric once, by its key, step, time
and value, and a tag by its key. One process at a time has a spool, by a lock that ends with it.
Where the disk takes nothing, rows wait in memory.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Self

from rayline.tracking.rows import Row, from_line, next_batch, to_line

_log = logging.getLogger(__name__)

FOLDER = "tracking"
"""Below a job's folder: one spool for each of its starts that the store does not have in full."""
SEGMENT_BYTES = 4 * 2**20
"""Rows are cut into files of about this size, so that the disk gets back what was sent."""
_READ_ROWS = 2000
_DESCRIPTION = "run.json"
_SENT = "sent.json"
_FILES = "files"


@dataclass(frozen=True, slots=True)
class Ending:
    """How and when a run ended."""

    status: str
    """MLflow's word."""
    time_ms: int


@dataclass(frozen=True, slots=True)
class Description:
    """All that is needed to make a run in a store, or to find it there."""

    key: str
    """Of this run alone, made here, and a tag of it: a run is never made twice."""
    uri: str
    experiment: str
    name: str
    started_ms: int
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    run_id: str | None = None
    """MLflow's; None until the store has answered."""
    ending: Ending | None = None


class Spool:
    """The rows of one run that the store does not have yet, in order. `append` is called by the
    driver, `head` and `drop` by whoever sends; neither raises because of the disk."""

    def __init__(self, folder: Path, description: Description) -> None:
        """A new one. `folder` is made; where that does not work rows wait in memory."""
        self._begin(folder, description, None)
        try:
            _make(folder)
            self._lock_file = _locked(folder)
            self._write_description()
        except OSError as wrong:
            self._give_up(wrong)

    @classmethod
    def reopen(cls, folder: Path) -> Self | None:
        """A spool that another process left behind, to be sent; None where its process lives.
        Raises OSError or ValueError where it cannot be read."""
        lock = _locked(folder)
        if lock is None:
            return None
        try:
            description = _read_description(folder)
        except (OSError, ValueError):
            os.close(lock)
            raise
        spool = cls.__new__(cls)
        spool._begin(folder, description, lock)
        spool._sealed = True
        spool._recall()
        return spool

    def _begin(self, folder: Path, description: Description, lock_file: int | None) -> None:
        self.folder = folder
        self.description = description
        self._guard = threading.RLock()
        self._lock_file = lock_file
        self._on_disk = True
        self._sealed = False
        self._out: int | None = None
        self._out_segment, self._out_bytes = 0, 0
        # Where reading goes on, and what was read and not dropped, each row with its line's end.
        self._read_segment, self._read_offset = 0, 0
        self._read: deque[tuple[Row, int, int]] = deque()
        self._memory: deque[Row] = deque()
        self._unsent = 0
        self._files = 0

    @property
    def unsent(self) -> int:
        """Rows that the store does not have yet."""
        with self._guard:
            return self._unsent

    @property
    def on_disk(self) -> bool:
        """Whether what waits outlives this process."""
        return self._on_disk

    def append(self, rows: Iterable[Row]) -> None:
        """Take rows; costs one write to a file."""
        taken = list(rows)
        if not taken:
            return
        with self._guard:
            self._unsent += len(taken)
            if self._on_disk and not self._sealed:
                try:
                    self._write("".join(f"{to_line(row)}\n" for row in taken).encode())
                    return
                except OSError as wrong:
                    self._give_up(wrong)
            self._memory.extend(taken)

    def keep_file(self, path: Path) -> Path:
        """A copy of a file or folder that stays until it was sent; the original where the disk
        takes no copy."""
        if not self._on_disk:
            return path
        try:
            target = self._place() / path.name
            if path.is_dir():
                shutil.copytree(path, target)
            else:
                shutil.copy2(path, target)
        except OSError as wrong:
            _log.warning("tracking: no copy of %s is kept until it is sent: %s", path, wrong)
            return path
        return target

    def keep_text(self, text: str, name: str) -> Path:
        """A file of this content that stays until it was sent. Raises OSError."""
        target = self._place() / name
        target.write_text(text, encoding="utf-8")
        return target

    def _place(self) -> Path:
        """A new folder for one file."""
        with self._guard:
            self._files += 1
            place = self.folder / _FILES / f"{self._files:05d}"
        place.mkdir(parents=True)
        return place

    def forget_file(self, path: Path) -> None:
        """Delete a copy that was sent."""
        if path.is_relative_to(self.folder):
            shutil.rmtree(path.parent, ignore_errors=True)

    def head(self) -> list[Row]:
        """What is to be sent next, at most one request; empty where nothing waits."""
        with self._guard:
            if not self._read:
                self._read_more()
            if self._read:
                return next_batch(row for row, _, _ in self._read)
            return next_batch(self._memory)

    def drop(self, count: int) -> None:
        """The store has the first `count` rows of `head` now."""
        with self._guard:
            self._unsent -= count
            if not self._read:
                for _ in range(count):
                    self._memory.popleft()
                return
            segment, offset = 0, 0
            for _ in range(count):
                _, segment, offset = self._read.popleft()
            self._note_sent(segment, offset)

    def found(self, run_id: str) -> None:
        """The store knows the run by this id."""
        if run_id != self.description.run_id:
            self._describe(replace(self.description, run_id=run_id))

    def end(self, ending: Ending) -> None:
        """No row follows; the run is to be closed like this."""
        self._describe(replace(self.description, ending=ending))

    def remove(self) -> None:
        """The store has everything."""
        self.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        # The folder of all spools, where this was the last.
        try:
            self.folder.parent.rmdir()
        except OSError:
            return

    def close(self) -> None:
        """Let another process have it; what waits stays."""
        with self._guard:
            self._sealed = True
            for handle in (self._out, self._lock_file):
                if handle is not None:
                    os.close(handle)
            self._out = self._lock_file = None

    def _describe(self, changed: Description) -> None:
        with self._guard:
            self.description = changed
            if self._on_disk:
                try:
                    self._write_description()
                except OSError as wrong:
                    self._give_up(wrong)

    def _write_description(self) -> None:
        _replace(self.folder / _DESCRIPTION, asdict(self.description))

    def _write(self, content: bytes) -> None:
        """Raises OSError where not all of it was written; what was is a row too often, not too
        few."""
        if self._out is None or self._out_bytes >= SEGMENT_BYTES:
            if self._out is not None:
                os.close(self._out)
                self._out = None
                self._out_segment += 1
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
            self._out = os.open(self._segment(self._out_segment), flags, 0o600)
            self._out_bytes = 0
        written = os.write(self._out, content)
        self._out_bytes += written
        if written < len(content):
            raise OSError(f"{written} of {len(content)} bytes were written")

    def _give_up(self, wrong: OSError) -> None:
        """The disk takes no more: rows wait in memory from here on."""
        _log.warning(
            "tracking: %s cannot be written (%s); what waits for the store is lost if this process "
            "ends",
            self.folder,
            wrong,
        )
        self._on_disk = False

    def _read_more(self) -> None:
        """The next lines that are whole, from as many files as there are."""
        while self._segment(self._read_segment).is_file():
            with self._segment(self._read_segment).open("rb") as stream:
                stream.seek(self._read_offset)
                for _ in range(_READ_ROWS):
                    line = stream.readline()
                    if not line.endswith(b"\n"):
                        break
                    self._read_offset += len(line)
                    self._read.append((from_line(line), self._read_segment, self._read_offset))
            if self._read or not self._segment(self._read_segment + 1).is_file():
                return
            self._segment(self._read_segment).unlink()
            self._read_segment, self._read_offset = self._read_segment + 1, 0

    def _note_sent(self, segment: int, offset: int) -> None:
        try:
            for earlier in range(segment - 1, -1, -1):
                self._segment(earlier).unlink()
        except FileNotFoundError:
            pass  # nor is any before it there
        try:
            _replace(self.folder / _SENT, {"segment": segment, "offset": offset})
        except OSError as wrong:
            # They are sent once more then, which changes nothing.
            _log.debug("tracking: %s: %s", self.folder, wrong)

    def _recall(self) -> None:
        """Find out where whoever had this stopped, and how many rows wait."""
        segments = sorted(_number(file) for file in self.folder.glob("rows-*.jsonl"))
        position = sent_position(self.folder)
        # A file goes once all of it was sent, and sent.json may still name it.
        self._read_segment = segments[0] if segments else 0
        self._read_offset = position[1] if self._read_segment == position[0] else 0
        for segment in segments:
            with self._segment(segment).open("rb") as stream:
                stream.seek(self._read_offset if segment == self._read_segment else 0)
                self._unsent += sum(line.endswith(b"\n") for line in stream)

    def _segment(self, number: int) -> Path:
        return self.folder / f"rows-{number:05d}.jsonl"


def left_behind(folder: Path) -> Iterator[Path]:
    """The folders of the spools below a job's folder, oldest first, whoever has them."""
    found = (file.parent for file in (folder / FOLDER).glob(f"*/{_DESCRIPTION}"))
    return iter(sorted(found, key=lambda spool: (spool / _DESCRIPTION).stat().st_mtime))


def read_description(folder: Path) -> Description | None:
    """What a spool says of its run; None where it cannot be read."""
    try:
        return _read_description(folder)
    except (OSError, ValueError):
        return None


def sent_position(folder: Path) -> tuple[int, int]:
    """Up to which file and byte the store has a spool's rows."""
    try:
        sent = json.loads((folder / _SENT).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return 0, 0
    return int(sent["segment"]), int(sent["offset"])


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileNotFoundError:
        # Another spool that was sent took the folder above away just then.
        folder.mkdir(parents=True, exist_ok=True)


def _read_description(folder: Path) -> Description:
    tree = json.loads((folder / _DESCRIPTION).read_text(encoding="utf-8"))
    ending = tree.pop("ending")
    try:
        return Description(**tree, ending=None if ending is None else Ending(**ending))
    except TypeError as wrong:
        raise ValueError(f"{folder / _DESCRIPTION}: {wrong}") from None


def _locked(folder: Path) -> int | None:
    """The folder's lock, held; None where another has it. Raises OSError."""
    handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    except OSError:
        # A file system without locks: nobody can be kept out.
        return handle
    return handle


def _replace(file: Path, tree: object) -> None:
    """Write it whole or not at all, for this user alone: an address may hold a password."""
    draft = file.with_suffix(".draft")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as stream:
        json.dump(tree, stream)
    draft.replace(file)


def _number(file: Path) -> int:
    return int(file.stem.removeprefix("rows-"))

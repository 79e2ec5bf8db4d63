"""The file of answers: a line when an answer comes, whole or not at all, and the place where a
batch that was interrupted goes on.

Each line is handed to the operating system when it comes, so that nothing is lost with the process;
once a second it is also made sure that the disk has it, which a power cut would tell.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from rayline.errors import SpecError
from rayline.serving.batch.lines import BatchAnswer

SYNC_S = 1.0
"""How long an answer may be in memory alone, for the operating system."""


@dataclass(frozen=True, slots=True)
class BatchSummary:
    """How a batch went."""

    requests: int
    """In the input file."""
    resumed: int
    """Answered in an earlier run."""
    answered: int
    """Now."""
    failed: int
    """Lines of the output file with an error, of this run and earlier ones."""

    @property
    def left(self) -> int:
        """Without an answer yet."""
        return self.requests - self.resumed - self.answered


class BatchOutput:
    """The output file of one batch, open for writing. Used as a context manager, by one thread."""

    def __init__(self, path: Path, custom_ids: Collection[str], *, retry_failed: bool) -> None:
        """Open the file and read what is there. A last line that was torn is cut off; with
        `retry_failed` lines with an error are dropped, to be asked again.

        Raises SpecError where another batch writes the file, a line is broken, or one answers a
        request that this batch has not.
        """
        self.path = path
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as wrong:
            raise SpecError(str(path), f"cannot be written: {wrong.strerror}") from None
        try:
            self._lock()
            self.done: set[str] = set()
            """Requests that have their answer."""
            self.failed: set[str] = set()
            """Of them, those whose answer is an error."""
            self._take_up(custom_ids, retry_failed=retry_failed)
        except BaseException:
            os.close(self._file)
            raise
        self._requests = len(custom_ids)
        self.resumed = len(self.done)
        self._synced_s = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.fsync(self._file)
        os.close(self._file)

    def write(self, answer: BatchAnswer) -> None:
        """Add an answer. Raises OSError where the disk does not take it."""
        line = answer.to_line()
        while line:
            line = line[os.write(self._file, line) :]
        self._note(answer.custom_id, failed=answer.failed)
        if time.monotonic() - self._synced_s > SYNC_S:
            os.fsync(self._file)
            self._synced_s = time.monotonic()

    def summary(self) -> BatchSummary:
        """How it stands."""
        answered = len(self.done) - self.resumed
        return BatchSummary(self._requests, self.resumed, answered, len(self.failed))

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise SpecError(
                str(self.path),
                "another batch is writing it",
                fix="wait until it has ended, or give another output file",
            ) from None

    def _take_up(self, custom_ids: Collection[str], *, retry_failed: bool) -> None:
        kept, dropped = 0, False
        lines: list[bytes] = []
        with os.fdopen(os.dup(self._file), "rb") as stream:
            for number, line in enumerate(stream, start=1):
                found = _read_answer(line)
                if found is None and not line.endswith(b"\n"):
                    break
                if found is None or found[0] not in custom_ids:
                    raise self._not_ours(number, found)
                if found[1] and retry_failed:
                    dropped = True
                    continue
                self._note(found[0], failed=found[1])
                kept += len(line)
                if retry_failed:
                    lines.append(line)
        if dropped:
            self._rewrite(lines)
            return
        os.ftruncate(self._file, kept)
        if os.lseek(self._file, 0, os.SEEK_END) and os.pread(self._file, 1, kept - 1) != b"\n":
            os.write(self._file, b"\n")

    def _note(self, custom_id: str, *, failed: bool) -> None:
        self.done.add(custom_id)
        (self.failed.add if failed else self.failed.discard)(custom_id)

    def _rewrite(self, lines: list[bytes]) -> None:
        """Put a file with these lines in the place of this one: whole, or not at all."""
        fresh = self.path.with_name(f".{self.path.name}.fresh")
        with fresh.open("wb") as file:
            file.writelines(lines)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self.path)
        os.close(self._file)
        self._file = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        self._lock()

    def _not_ours(self, number: int, found: tuple[str, bool] | None) -> SpecError:
        problem = (
            "is no line of a batch's output"
            if found is None
            else f"answers {found[0]!r:.200}, which the input does not ask"
        )
        return SpecError(
            f"{self.path}, line {number}", problem, fix="give another output file, or move this one"
        )


def _read_answer(line: bytes) -> tuple[str, bool] | None:
    """The custom_id and whether it is an error; None for what is no line of a batch's output."""
    try:
        tree = json.loads(line)
        return str(tree["custom_id"]), tree["error"] is not None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None

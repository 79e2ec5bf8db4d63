"""A worker's own log file: everything its code prints or logs, each line with time and place.

Lines written through Python are stamped. What libraries write below Python (NCCL's own lines, the
stack of a segmentation fault) goes into the same file as it is: a stamp would need a thread that
dies with the process, and the last lines of a crash are the ones that matter.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

_RAY_MARKS = (":actor_name:", ":task_name:", ":job_id:")
"""Lines that Ray prints for its own log collector."""


class StampedLines(io.TextIOBase):
    """A text stream that begins each line with the time (UTC) and a mark."""

    encoding = "utf-8"
    """The log's; libraries ask it of sys.stdout."""

    def __init__(self, target: TextIO, mark: str) -> None:
        self._target = target
        self._mark = mark
        self._lock = threading.Lock()
        self._begun: dict[int, str] = {}
        """Thread to the line that it has begun: ranks print from several threads."""

    def writable(self) -> bool:
        """True: this is a stream to write to."""
        return True

    def write(self, text: str) -> int:
        """Write the lines that `text` completes; what is begun waits for its end."""
        thread = threading.get_ident()
        with self._lock:
            *lines, begun = (self._begun.pop(thread, "") + text).split("\n")
            if begun:
                self._begun[thread] = begun
            for line in lines:
                self._put(line)
        return len(text)

    def flush(self) -> None:
        """Nothing waits but unfinished lines, and those wait for their end."""

    def fileno(self) -> int:
        """The file's descriptor: faulthandler and subprocess write there."""
        return self._target.fileno()

    def _put(self, line: str) -> None:
        if line.startswith(_RAY_MARKS):
            return
        now = datetime.now(UTC).isoformat(sep=" ", timespec="milliseconds").removesuffix("+00:00")
        # A progress bar rewrites its line with \r: only what would stay on a screen is kept.
        self._target.write(f"{now} {self._mark} | {line.rstrip().rpartition(chr(13))[2]}\n")


def keep_log(file: Path, mark: str) -> None:
    """Send this process's prints, logging and native output to `file`, which grows over restarts.

    Called once by each worker. Raises OSError where the file cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    target = file.open("a", encoding="utf-8", buffering=1)
    os.dup2(target.fileno(), 1)
    os.dup2(target.fileno(), 2)
    lines = StampedLines(target, mark)
    sys.stdout = lines
    sys.stderr = lines
    logging.basicConfig(
        stream=lines, level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", force=True
    )

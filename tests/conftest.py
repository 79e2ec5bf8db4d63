"""The command line as users run it: in a process of its own, of which nothing may be left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, settings

# Whatever starts the tests in the background may have them ignore Ctrl-C, and what they start
# would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).resolve().parents[1]
MARK = "RAYLINE_TEST_MARK"
"""Environment variable that every process of one command line inherits, daemons too."""

# How long an example takes says more of the machine's other work than of ours.
settings.register_profile("steady", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")


@dataclass(frozen=True)
class RunningCommand:
    """A command line that was started."""

    process: subprocess.Popen[str]
    mark: str

    def finish(self, timeout_s: float = 240) -> tuple[int, str, str]:
        """Exit code, stdout and stderr, once it has ended. Fails where a process of it is left."""
        shown, said = self.process.communicate(timeout=timeout_s)
        assert left_over(self.mark) == []
        return self.process.returncode, shown, said


@pytest.fixture(scope="session")
def start_command() -> Callable[[list[str], Path], RunningCommand]:
    """Start `rayline WORDS` in a folder; its processes bear a mark of their own."""

    def start(words: list[str], folder: Path) -> RunningCommand:
        mark = str(uuid.uuid4())
        process = subprocess.Popen(
            [sys.executable, "-c", "from rayline.cli import main; main()", *words],
            cwd=folder,
            env={
                **os.environ,
                MARK: mark,
                "RAY_AUTH_MODE": "disabled",
                # A relative PYTHONPATH would not lead back from `folder`.
                "PYTHONPATH": str(REPOSITORY / "platform"),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        return RunningCommand(process, mark)

    return start


@pytest.fixture(scope="session")
def command(
    start_command: Callable[[list[str], Path], RunningCommand],
) -> Callable[[list[str], Path], tuple[int, str, str]]:
    """Run `rayline WORDS` in a folder to its end: exit code, stdout, stderr."""
    return lambda words, folder: start_command(words, folder).finish()


def left_over(mark: str, timeout_s: float = 15.0) -> list[str]:
    """Command lines of processes that bear the mark and have not ended in time."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        alive = []
        for process in psutil.process_iter(["cmdline"]):
            try:
                if process.environ().get(MARK) == mark:
                    alive.append(" ".join(process.info["cmdline"] or []))
            except psutil.Error:
                continue
        if not alive or time.monotonic() > deadline_s:
            return alive
        time.sleep(0.2)

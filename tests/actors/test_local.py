"""Calls in forked processes: their values, their errors, and that none is left on any way out."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import psutil
import pytest

from conftest import MARK, left_over
from rayline.actors.local import RunCalls, local_processes
from rayline.errors import SpecError, WorkerError
from rayline.train.verify.forks import Call

TESTS = Path(__file__).resolve().parents[1]


def call(folder: Path, function: str, *arguments: object) -> Call:
    return Call(function, f"support.local_calls:{function}", arguments, folder / f"{function}.log")


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunCalls]:
    before = set(psutil.Process().children(recursive=True))
    with local_processes(["support.local_calls"], tmp_path) as calls:
        yield calls
    assert set(psutil.Process().children(recursive=True)) <= before


def test_each_call_has_a_process_of_its_own(run: RunCalls, tmp_path: Path) -> None:
    calls = [call(tmp_path, "process_and_sum", n, 1) for n in range(3)]
    first, second = run(calls), run(calls)
    assert [total for _, total in first] == [1, 2, 3]
    assert len({pid for pid, _ in (*first, *second)} | {os.getpid()}) == 7


def test_an_error_of_the_tree_arrives_unchanged(run: RunCalls, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="model: cannot be built") as raised:
        run([call(tmp_path, "refuse")])
    assert raised.value.fix == "use another"
    # Whoever called may go on.
    assert run([call(tmp_path, "process_and_sum", 2)])[0][1] == 2


def test_the_cause_is_raised_not_the_loss_of_contact(run: RunCalls, tmp_path: Path) -> None:
    calls = [
        call(tmp_path, "lose_contact"),
        call(tmp_path, "fail_late", 0.5),
        call(tmp_path, "wait", tmp_path / "note"),
    ]
    with pytest.raises(WorkerError, match="fail_late: ZeroDivisionError: the user's own") as raised:
        run(calls)
    assert "local_calls.py" in raised.value.remote_traceback


def test_a_process_that_dies_is_told_of_with_its_last_words(run: RunCalls, tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="its process ended: exit code -9") as raised:
        run([call(tmp_path, "be_killed")])
    assert "last words" in raised.value.remote_traceback


def test_a_module_that_cannot_be_imported_is_named(tmp_path: Path) -> None:
    with (
        local_processes(["no_such_module"], tmp_path) as run,
        pytest.raises(WorkerError, match="No module named 'no_such_module'"),
    ):
        run([call(tmp_path, "process_and_sum", 1)])


def test_an_interrupt_leaves_no_process(tmp_path: Path) -> None:
    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    note = tmp_path / "note"
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with local_processes([], tmp_path) as run:
            signal.setitimer(signal.ITIMER_REAL, 3.0)
            with pytest.raises(KeyboardInterrupt):
                run([call(tmp_path, "wait", note)])
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    if note.exists():
        assert not psutil.pid_exists(int(note.read_text()))
    assert not [child for child in psutil.Process().children() if "forks" in str(child.cmdline())]


def test_processes_end_when_their_driver_is_killed(tmp_path: Path) -> None:
    mark = str(uuid.uuid4())
    code = f"from support.local_calls import *; run_until_killed(Path({str(tmp_path)!r}))"
    path = os.pathsep.join([str(TESTS), str(TESTS.parent / "platform")])
    driver = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, MARK: mark, "PYTHONPATH": path}
    )
    notes = [tmp_path / f"note-{n}" for n in range(2)]
    deadline_s = time.monotonic() + 120
    while not all(note.exists() for note in notes) and time.monotonic() < deadline_s:
        time.sleep(0.05)
    driver.kill()
    driver.wait()
    assert all(note.exists() for note in notes)
    assert left_over(mark) == []

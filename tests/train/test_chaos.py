"""Faults within a rank: when they happen, and how often."""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch

from rayline.spec import Fault, FaultPhase
from rayline.train.chaos import Drag, FullDisk, Trap, _silence
from rayline.train.link import Phase, unwatched

STEP_S = 0.05


def step(trap: Trap, number: int) -> float:
    """How long a step took that works for STEP_S, and rests outside of its phases."""
    began_s = time.perf_counter()
    weight = torch.ones(4, requires_grad=True)
    with trap.around("data", number):
        torch.ones(4).add(1).mul(2)
    with trap.around("engine", number):
        time.sleep(STEP_S)
        (weight * 2).exp().sum().backward()
        torch.optim.SGD([weight], lr=0.1).step()
    phases: list[Phase] = ["evaluate", "save", "snapshot"]
    for phase in phases:
        with trap.around(phase, number):
            torch.ones(4).add(1).mul(2)
    return time.perf_counter() - began_s


@pytest.mark.parametrize("phase", ["data", "forward", "backward", "collective", "optimizer"])
def test_a_slow_rank_takes_twice_as_long_in_every_step_from_its_own_on(
    phase: FaultPhase, tmp_path: Path
) -> None:
    fault = Fault(kind="slow", rank=0, step=3, phase=phase)
    note = tmp_path / "faults" / "000.json"
    drag = Drag(fault, note, unwatched)
    usual_s = [step(drag, number) for number in (1, 2)]
    assert not note.exists()
    at_s = time.time()
    for number in (3, 4):
        assert step(drag, number) >= 2 * STEP_S
        # Once a step, and no more the second time than the first.
        assert drag._slept_s <= min(usual_s)
    assert max(usual_s) < 2 * STEP_S
    noted = json.loads(note.read_text())
    assert noted["fault"] == str(fault)
    assert at_s <= noted["at_s"] <= at_s + 2 * STEP_S


def test_a_fault_happens_once_in_the_phase_of_its_step(tmp_path: Path) -> None:
    trap = Trap(Fault(kind="raise", rank=0, step=2), tmp_path / "note.json", unwatched)
    step(trap, 1)
    with pytest.raises(RuntimeError, match="planted: raise rank=0@step=2,phase=backward"):
        step(trap, 2)
    step(trap, 2)


WRITER = """
import pathlib, sys
for line in sys.stdin:
    try:
        pathlib.Path(line.strip()).write_bytes(bytes(100_000))
        print("written", flush=True)
    except OSError as wrong:
        print(wrong.strerror, flush=True)
"""


@pytest.fixture
def writer() -> Iterator["subprocess.Popen[str]"]:
    """A process that writes the files whose names it is sent, as a keeper writes shards."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        yield process
        process.kill()


def test_a_disk_is_full_for_the_process_that_writes_and_has_room_again(
    writer: "subprocess.Popen[str]", tmp_path: Path
) -> None:
    def write() -> str:
        assert writer.stdin is not None
        assert writer.stdout is not None
        writer.stdin.write(f"{tmp_path}/shard\n")
        writer.stdin.flush()
        return writer.stdout.readline().strip()

    fault = Fault(kind="disk_full", rank=0, step=3, phase="data")
    note = tmp_path / "note.json"
    full = FullDisk(fault, note, unwatched, writer.pid, steps=2)
    told = []
    for number in range(1, 8):
        step(full, number)
        told.append(write())
    assert told == ["written"] * 2 + ["File too large"] * 3 + ["written"] * 2
    assert resource.prlimit(writer.pid, resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    # The rank's next process finds the note: it happens once.
    step(FullDisk(fault, note, unwatched, writer.pid, steps=2), 3)
    assert write() == "written"


def test_a_node_that_is_silent_goes_on_as_if_nothing_had_happened() -> None:
    nap = "import time; time.sleep(60)"
    start = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {nap!r}])"
    with subprocess.Popen([sys.executable, "-c", start]) as node:
        raylet = psutil.Process(node.pid)
        while not raylet.children():
            time.sleep(0.02)
        all_of_it = [raylet, *raylet.children()]
        watch = subprocess.Popen(
            [sys.executable, "-c", WATCH, *(str(one.pid) for one in all_of_it)]
        )
        _silence(raylet, 1.0)
        assert watch.wait(timeout=20) == 0
        # On a busy machine it is about to run for a moment before it sleeps again.
        assert {one.status() for one in all_of_it} <= {"sleeping", "running"}
        for one in reversed(all_of_it):
            one.kill()


WATCH = """
import psutil, sys, time
node = [psutil.Process(int(pid)) for pid in sys.argv[1:]]
end_s = time.monotonic() + 15
while not all(one.status() == "stopped" for one in node):
    assert time.monotonic() < end_s
    time.sleep(0.02)
"""

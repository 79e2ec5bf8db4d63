"""Faults within a rank: when they happen, and how often."""

import json
import time
from pathlib import Path

import pytest
import torch

from rayline.spec import Fault, FaultPhase
from rayline.train.chaos import Drag, Trap
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

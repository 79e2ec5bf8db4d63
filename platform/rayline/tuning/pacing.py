"""Rank 0 of a trial: it keeps every step in the trial's folder, and waits for the verdict at those
steps at which trials are compared.

A gang reports its steps and goes on; were a step short, it would be at its end before a driver that
places other trials has looked at it. So a trial that is to be stopped at a rung computes nothing
beyond it. What is kept here is whole even where the driver dies: nothing lies in memory only.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rayline.spec import StepReport
from rayline.tuning.figures import StepFigures
from rayline.tuning.leavings import STEPS_FILE

GO_FILE = "go"
"""The newest step after which a trial may go on."""
_POLL_S = 0.01
_LONGEST_WAIT_S = 8.0
"""For a driver that is busy, or gone; below the 15 s after which a rank counts as hung."""


@dataclass(frozen=True, slots=True)
class Pacing:
    """Called on rank 0 after every step, in its own process."""

    folder: str
    """The trial's, on storage that rank 0 and the trial's process see."""
    compared: frozenset[int]
    """Steps at which to wait."""

    def __call__(self, report: StepReport, stop_requested: Callable[[], bool]) -> None:
        """Keep the step; where trials are compared after it, return once this one may go on or is
        to stop."""
        line = StepFigures.of(report).to_json() + "\n"
        with (Path(self.folder) / STEPS_FILE).open("a", encoding="utf-8") as file:
            file.write(line)
        if report.step not in self.compared:
            return
        deadline_s = time.monotonic() + _LONGEST_WAIT_S
        while time.monotonic() < deadline_s and not stop_requested():
            if _may_go_on_after(Path(self.folder)) >= report.step:
                return
            time.sleep(_POLL_S)


def let_go_on(folder: Path, step: int) -> None:
    """Say that the trial may go on after this step. Called by the trial's process."""
    beside = folder / f"{GO_FILE}.part"
    beside.write_text(str(step), encoding="utf-8")
    os.replace(beside, folder / GO_FILE)


def _may_go_on_after(folder: Path) -> int:
    file = folder / GO_FILE
    return int(file.read_text(encoding="utf-8")) if file.exists() else 0

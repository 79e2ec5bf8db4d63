"""Watching that steps go on: when a step is overdue, what the ranks said, kept on disk.

Nothing is asked of a gang that reports its steps in time, so watching costs it nothing.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

from rayline.actors.hang import Hang, find_hang, overdue_s
from rayline.actors.progress import Standing
from rayline.spec import StepReport

log = logging.getLogger(__name__)

_STEPS = 50
"""Recent steps that the median is taken of."""
_SLACK_S = 1.0
"""Between a rank's last report and its next phase, and between two looks of the driver."""


class Vigil:
    """The driver's view of one gang's pace. `begin` at each of its beginnings."""

    def __init__(self, hang_after_s: float, folder: Path) -> None:
        """`folder` takes what ranks say when the gang hangs."""
        self._hang_after_s = hang_after_s
        self._folder = folder
        self._step_s: deque[float] = deque(maxlen=_STEPS)
        self._looked_s = time.monotonic()
        self._epoch = 0

    @property
    def longest_step_s(self) -> float:
        """Of the recent steps."""
        return max(self._step_s, default=0.0)

    def begin(self, epoch: int) -> None:
        """The gang begins for the `epoch`-th time: its first step has no usual length."""
        self._epoch = epoch
        self._step_s.clear()
        self._looked_s = time.monotonic()

    def saw(self, reports: Sequence[StepReport]) -> None:
        """Steps were reported."""
        if reports:
            self._looked_s = time.monotonic()
            self._step_s.extend(report.training_s for report in reports)

    def is_due(self) -> bool:
        """Whether the ranks are to be asked where they stand."""
        return time.monotonic() - self._looked_s >= self._limit_s

    def judge(self, standings: Mapping[int, Standing | None]) -> Hang | None:
        """Whether the gang hangs, by what its ranks answered; where it does, all of it is kept."""
        self._looked_s = time.monotonic()
        # The ranks began to wait a little after the last report was made.
        hang = find_hang(standings, self._limit_s - _SLACK_S)
        if hang is not None:
            self._keep(standings, hang)
        return hang

    @property
    def _limit_s(self) -> float:
        return overdue_s(self._step_s, self._hang_after_s)

    def _keep(self, standings: Mapping[int, Standing | None], hang: Hang) -> None:
        folder = self._folder / f"step-{hang.step:08d}-epoch-{self._epoch}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "verdict.txt").write_text(f"rank {hang.rank} {hang.reason}\n")
            for rank, one in standings.items():
                told = "no answer\n"
                if one is not None:
                    where = f"step {one.step}, {one.phase} for {one.for_s:.1f} s"
                    told = f"{where}, collective: {one.collective}\n\n{one.stacks}"
                (folder / f"rank-{rank:05d}.txt").write_text(told)
        except OSError as wrong:
            log.warning("the stacks of the hanging ranks could not be kept: %s", wrong)

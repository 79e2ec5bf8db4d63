"""The pace of a run: each step's learning rate, and whether it is applied. What both remember lies
here, in a handful of numbers that checkpoints keep; every rank has the same."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from rayline.spec import JobSpec, PlateauSchedule
from rayline.train.engine import StepOutcome
from rayline.train.guard import Guard
from rayline.train.schedule import Plateau, learning_rate

log = logging.getLogger(__name__)


class Pace:
    """One rank's pace. Every rank asks it the same, in the order of the methods, at every step."""

    def __init__(self, job: JobSpec) -> None:
        self._optim = job.optim
        self._steps = job.steps
        self._guard = Guard(job.guard)
        self._plateau = Plateau()

    def learning_rate(self, step: int) -> float:
        """Rate of step `step`, counted from 1."""
        return learning_rate(self._optim, step, self._steps, self._plateau)

    def admits(self, loss: float, grad_norm: float) -> bool:
        """Whether the step is applied; asked by the engine before its optimizer moves."""
        return self._guard.admits(loss, grad_norm)

    def done(self, step: int, outcome: StepOutcome) -> str:
        """Take in what a step came to: why it was skipped, empty where it was applied. Raises
        WorkerError, on every rank, where the guard stops the job."""
        if outcome.overflowed_at is not None:
            reason = f"fp16 gradients overflowed at a loss scale of {outcome.overflowed_at:g}"
            log.warning("step %d skipped on all ranks: %s", step, reason)
            return reason
        rank = next((fault.rank for fault in outcome.faults if fault.rank is not None), None)
        skipped = self._guard.enforce(step, rank, [str(fault) for fault in outcome.faults])
        if isinstance(self._optim.schedule, PlateauSchedule) and not skipped:
            self._plateau = self._plateau.after(outcome.loss, self._optim.schedule)
        return skipped

    def scalars(self) -> dict[str, float | int]:
        """What a checkpoint keeps besides the engine's scalars."""
        return {**self._guard.scalars(), **self._plateau.scalars()}

    def restore(self, scalars: Mapping[str, float | int]) -> None:
        """Take over what a checkpoint kept."""
        self._guard.restore(scalars)
        self._plateau = Plateau.from_scalars(scalars)

"""The learning rate as a function of the step. Only a plateau remembers anything: what it has seen
of the losses is a value of three numbers, which checkpoints keep."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from rayline.spec import OptimSpec, PlateauSchedule
from rayline.spec.schedule import (
    ConstantSchedule,
    CosineSchedule,
    ExponentialSchedule,
    LinearSchedule,
    PolynomialSchedule,
    StepSchedule,
    WsdSchedule,
)


@dataclass(frozen=True, slots=True)
class Plateau:
    """What a plateau schedule has seen of the losses of the applied steps."""

    best: float | None = None
    """The lowest loss; None before the first one."""
    waited_steps: int = 0
    """Steps since, or since the rate last fell."""
    falls: int = 0
    """How often the rate fell."""

    def after(self, loss: float, schedule: PlateauSchedule) -> Plateau:
        """Once another step had this loss (torch.optim.lr_scheduler.ReduceLROnPlateau, mode min,
        threshold_mode rel)."""
        if self.best is None or loss < self.best * (1 - schedule.threshold):
            return Plateau(loss, 0, self.falls)
        if self.waited_steps == schedule.patience_steps:
            return Plateau(self.best, 0, self.falls + 1)
        return Plateau(self.best, self.waited_steps + 1, self.falls)

    def scalars(self) -> dict[str, float | int]:
        """As a checkpoint keeps it: finite numbers, none before the first loss."""
        if self.best is None:
            return {}
        return {
            "plateau_best": self.best,
            "plateau_waited_steps": self.waited_steps,
            "plateau_falls": self.falls,
        }

    @classmethod
    def from_scalars(cls, scalars: Mapping[str, float | int]) -> Plateau:
        """The inverse of `scalars`; the beginning where they are not there."""
        if "plateau_best" not in scalars:
            return cls()
        return cls(
            float(scalars["plateau_best"]),
            int(scalars["plateau_waited_steps"]),
            int(scalars["plateau_falls"]),
        )


def learning_rate(
    optim: OptimSpec,
    step: int,
    steps: int,
    plateau: Plateau = Plateau(),
) -> float:
    """Rate of optimizer step `step` (counted from 1) of a run of `steps`: a linear rise over
    warmup_steps, then what the schedule leaves of lr, never less than lr x min_lr_ratio. Called by
    every rank; `plateau` is what a plateau schedule has seen, and nothing to the others."""
    if step <= optim.warmup_steps:
        return optim.lr * step / optim.warmup_steps
    return optim.lr * _share(optim, step - optim.warmup_steps, steps - optim.warmup_steps, plateau)


def _share(optim: OptimSpec, step: int, steps: int, plateau: Plateau) -> float:
    """What is left of the peak at step `step` out of `steps` after the warm-up: from 1 down to the
    floor."""
    schedule, floor = optim.schedule, optim.min_lr_ratio
    progress = min(1.0, step / max(1, steps))
    match schedule:
        case ConstantSchedule():
            return 1.0
        case LinearSchedule():
            return floor + (1 - floor) * (1 - progress)
        case CosineSchedule():
            return floor + (1 - floor) * _half_cosine(progress)
        case PolynomialSchedule():
            return floor + (1 - floor) * (1 - progress) ** schedule.power
        case WsdSchedule():
            return floor + (1 - floor) * _stable_then_decay(schedule, step, steps)
        case ExponentialSchedule():
            return max(floor, schedule.factor**step)
        case StepSchedule():
            return max(floor, schedule.factor ** (step // schedule.every_steps))
        case PlateauSchedule():
            return max(floor, schedule.factor**plateau.falls)


def _half_cosine(progress: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * progress))


def _stable_then_decay(schedule: WsdSchedule, step: int, steps: int) -> float:
    """1 while stable; the decay fills the last steps, and reaches 0 at the last one."""
    decayed = step - max(0, steps - schedule.decay_steps)
    if decayed <= 0:
        return 1.0
    progress = min(1.0, decayed / min(schedule.decay_steps, max(1, steps)))
    if schedule.decay == "linear":
        return 1 - progress
    if schedule.decay == "cosine":
        return _half_cosine(progress)
    return 1 - math.sqrt(progress)

"""What becomes of a step once its loss and gradient norm are known: one rule for all engines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from rayline.train.engine import Admits, Fault, StepOutcome
from rayline.train.loss_scale import LossScale


def decide(
    outcome: StepOutcome,
    scale: LossScale | None,
    admits: Admits,
    find_faults: Callable[[StepOutcome], tuple[Fault, ...]],
) -> tuple[StepOutcome, LossScale | None]:
    """The outcome, `applied` where the optimizer is to move, and the loss's scale of the next step.

    Every rank calls it with the same outcome and gets the same. `scale`: that of this step, None
    where the loss has none; where the gradients overflowed for it, `admits` is not asked.
    `find_faults`, which may be collective, is asked where `admits` refuses."""
    if scale is not None:
        overflowed_at, scale = scale.judged(outcome.loss, outcome.grad_norm)
        if overflowed_at is not None:
            return replace(outcome, applied=False, overflowed_at=overflowed_at), scale
    if admits(outcome.loss, outcome.grad_norm):
        return outcome, scale
    return replace(outcome, applied=False, faults=find_faults(outcome)), scale

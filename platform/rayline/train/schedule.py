"""The learning rate as a function of the step: nothing is remembered, so nothing is restored."""

from __future__ import annotations

import math

from rayline.spec import OptimSpec


def learning_rate(optim: OptimSpec, step: int, steps: int) -> float:
    """Rate of optimizer step `step` (counted from 1) of a run of `steps`: a linear rise over
    warmup_steps, then constant, or a cosine down to lr x min_lr_ratio at the last step
    (Loshchilov & Hutter 2017, without restarts)."""
    if step <= optim.warmup_steps:
        return optim.lr * step / optim.warmup_steps
    if optim.schedule == "constant":
        return optim.lr
    progress = (step - optim.warmup_steps) / max(1, steps - optim.warmup_steps)
    floor = optim.min_lr_ratio
    return optim.lr * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))

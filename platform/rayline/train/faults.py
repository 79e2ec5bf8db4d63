"""Where values were not finite. Asked only of a step that was refused, so it may cost what it
likes."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.distributed as dist

from rayline.train.engine import Fault, StepOutcome

MOST_NAMED = 4
"""A NaN soon is everywhere; the first few places tell."""


def find_faults(
    outcome: StepOutcome, loss_sum: float, gradients: Mapping[str, torch.Tensor]
) -> tuple[Fault, ...]:
    """The first places where values are not finite, the same on every rank; every rank calls it,
    with its own part of the loss and its own shards of the gradients. Losses come before gradients,
    for the one makes the other, and low ranks before high ones. Empty where the outcome's numbers
    are finite: nothing is gathered then."""
    if math.isfinite(outcome.loss) and math.isfinite(outcome.grad_norm):
        return ()
    here = [] if math.isfinite(loss_sum) else ["loss"]
    here += [
        f"gradient of {name}"
        for name, gradient in gradients.items()
        if not gradient.isfinite().all()
    ][:MOST_NAMED]
    everywhere: list[list[str]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(everywhere, here)
    found = [Fault(rank, what) for rank, places in enumerate(everywhere) for what in places]
    return tuple(sorted(found, key=lambda fault: fault.what != "loss")[:MOST_NAMED])

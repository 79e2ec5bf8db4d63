"""What is minimized: the sum of next-token cross-entropies over target tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from rayline.spec import ObjectiveSpec

PLAIN = ObjectiveSpec()
"""The cross-entropy alone."""
NO_TARGET = -100
"""Label of a place without a loss: torch's and transformers' own ignore_index."""


def summed_cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, objective: ObjectiveSpec = PLAIN
) -> torch.Tensor:
    """Sum, in float32, over the target tokens. `logits` [sequences, tokens, vocab], `labels` int64
    [sequences, tokens], already shifted. A sum, not a mean: the mean is over the whole global
    batch, and only the engine knows its size.

    With Z the sum of a place's exponentials and m the mean of its logits, smoothing by s adds
    s (target's logit - m) to a place's loss (Szegedy et al. 2016, section 7), and the z-loss adds
    its coefficient times log(Z) squared (Chowdhery et al. 2022, PaLM, section 5)."""
    places, targets = logits.float().flatten(0, 1), labels.flatten()
    loss = F.cross_entropy(
        places,
        targets,
        ignore_index=NO_TARGET,
        reduction="sum",
        label_smoothing=objective.label_smoothing,
    )
    if objective.z_loss:
        counted = places[targets != NO_TARGET]
        loss = loss + objective.z_loss * counted.logsumexp(-1).square().sum()
    return loss


def count_targets(labels: torch.Tensor) -> int:
    """Target tokens among `labels`."""
    return int((labels != NO_TARGET).sum())

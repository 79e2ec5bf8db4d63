"""What is minimized: the sum of next-token cross-entropies over target tokens."""

from __future__ import annotations

import torch

from rayline.parallel.vocabulary import VocabularySlice, token_logits
from rayline.spec import NO_TARGET, ObjectiveSpec

PLAIN = ObjectiveSpec()
"""The cross-entropy alone."""


def summed_cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    held: VocabularySlice,
    objective: ObjectiveSpec = PLAIN,
) -> torch.Tensor:
    """Sum, in float32, over the target tokens. `logits` [sequences, tokens, held.size], `labels`
    int64 [sequences, tokens], already shifted; every rank that shares the vocabulary calls it and
    gets the same. A sum, not a mean: the mean is over the whole global batch, and only the engine
    knows its size.

    With Z the sum of a place's exponentials and m the mean of its logits, smoothing by s adds
    s (target's logit - m) to a place's loss (Szegedy et al. 2016, section 7), and the z-loss adds
    its coefficient times log(Z) squared (Chowdhery et al. 2022, PaLM, section 5)."""
    targets, smoothing = labels.flatten(), objective.label_smoothing
    counted = targets != NO_TARGET
    tokens = token_logits(
        logits.flatten(0, 1), targets.masked_fill(~counted, 0), held, with_mean=smoothing > 0
    )
    losses = tokens.log_sum - tokens.target
    if smoothing:
        losses = losses + smoothing * (tokens.target - tokens.mean)
    if objective.z_loss:
        losses = losses + objective.z_loss * tokens.log_sum.square()
    return (losses * counted).sum()


def count_targets(labels: torch.Tensor) -> int:
    """Target tokens among `labels`."""
    return int((labels != NO_TARGET).sum())

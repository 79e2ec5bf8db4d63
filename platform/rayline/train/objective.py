"""What is minimized: the sum of next-token cross-entropies over target tokens."""

from __future__ import annotations

import torch

from rayline.parallel.vocabulary import VocabularySlice, token_logits

NO_TARGET = -100
"""Label of a place without a loss: torch's and transformers' own ignore_index."""


def summed_cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, held: VocabularySlice
) -> torch.Tensor:
    """Sum, in float32, over the target tokens. `logits` [sequences, tokens, held.size], `labels`
    int64 [sequences, tokens], already shifted; every rank that shares the vocabulary calls it and
    gets the same. A sum, not a mean: the mean is over the whole global batch, and only the engine
    knows its size."""
    targets = labels.flatten()
    counted = targets != NO_TARGET
    tokens = token_logits(logits.flatten(0, 1), targets.masked_fill(~counted, 0), held)
    return ((tokens.log_sum - tokens.target) * counted).sum()


def count_targets(labels: torch.Tensor) -> int:
    """Target tokens among `labels`."""
    return int((labels != NO_TARGET).sum())

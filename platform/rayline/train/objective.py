"""What is minimized: the sum of next-token cross-entropies over target tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F

NO_TARGET = -100
"""Label of a place without a loss: torch's and transformers' own ignore_index."""


def summed_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sum, in float32, over the target tokens. `logits` [sequences, tokens, vocab], `labels` int64
    [sequences, tokens], already shifted. A sum, not a mean: the mean is over the whole global
    batch, and only the engine knows its size."""
    return F.cross_entropy(
        logits.float().flatten(0, 1), labels.flatten(), ignore_index=NO_TARGET, reduction="sum"
    )


def count_targets(labels: torch.Tensor) -> int:
    """Target tokens among `labels`."""
    return int((labels != NO_TARGET).sum())

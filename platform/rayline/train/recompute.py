"""What the backward pass recomputes instead of keeping: activation checkpointing, one transformer
layer at a time (Chen et al. 2016), by torch.utils.checkpoint."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

aten = torch.ops.aten
KEPT = frozenset(
    {
        aten.mm.default,
        aten.addmm.default,
        aten.bmm.default,
        aten._scaled_dot_product_flash_attention.default,
        aten._scaled_dot_product_flash_attention_for_cpu.default,
        aten._scaled_dot_product_efficient_attention.default,
        aten._scaled_dot_product_cudnn_attention.default,
        aten._scaled_dot_product_attention_math_for_mps.default,
    }
)
"""What selective recomputation keeps: products of matrices and attention cost more to compute again
than all else in a layer together (Korthikanti et al. 2022, section 5)."""


def recompute_layers(
    layers: Iterable[nn.Module], kind: Literal["none", "selective", "full"]
) -> None:
    """Replace the layers' forward passes, in place, by ones that compute the same. Every rank calls
    it, after the layers were split over the tensor axis and before they are sharded over the data
    axis: a layer is then gathered once for all of its backward pass."""
    if kind == "none":
        return
    for layer in layers:
        layer.forward = _recomputing(layer.forward, selective=kind == "selective")


def _recomputing(forward: Any, *, selective: bool) -> Any:
    options: dict[str, Any] = {"use_reentrant": False}
    if selective:
        options["context_fn"] = functools.partial(create_selective_checkpoint_contexts, _policy)

    @functools.wraps(forward)
    def recomputed(*args: Any, **kwargs: Any) -> Any:
        return checkpoint(forward, *args, **options, **kwargs)

    return recomputed


def _policy(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    keeps = operator in KEPT
    return CheckpointPolicy.MUST_SAVE if keeps else CheckpointPolicy.PREFER_RECOMPUTE

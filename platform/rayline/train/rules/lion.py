"""Lion (Chen et al. 2023, Symbolic Discovery of Optimization Algorithms, algorithm 2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class Lion(torch.optim.Optimizer):
    """The sign of a mean, as one of torch's optimizers."""

    def __init__(self, groups: list[dict[str, Any]], betas: tuple[float, float]) -> None:
        """`groups` name weight_decay; `betas`: share of the mean in the update, and its decay."""
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0})
        self._betas = betas

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """The sign of the mean interpolated towards the gradient; then the mean moves on. The means
        stand in `state` before the first step; `closure` is not called."""
        shown, kept = self._betas
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            if not weights:
                continue
            gradients = [weight.grad for weight in weights]
            means = [self.state[weight]["exp_avg"] for weight in weights]
            updates = torch._foreach_lerp(means, gradients, 1 - shown)
            torch._foreach_sign_(updates)
            torch._foreach_mul_(weights, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(weights, updates, alpha=-group["lr"])
            torch._foreach_lerp_(means, gradients, 1 - kept)

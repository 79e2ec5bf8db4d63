"""What torch's optimizer steps under DeepSpeed, and its state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rayline.train.optimizer import AVERAGE


class Masters:
    """The float32 tensors that torch's optimizer steps on this rank: weights, parts of them, or
    many in a row. Their state is made here, zero before the first step, which DeepSpeed leaves
    undone and a checkpoint needs."""

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        tensors: Sequence[torch.Tensor],
        slots: Sequence[str],
    ) -> None:
        """`slots`: names of the tensors in each one's state; AVERAGE is a running mean of the
        weights, of which the optimizer knows nothing."""
        self._tensors = list(tensors)
        self.state: dict[Any, dict[str, torch.Tensor]] = optimizer.state
        # Fused optimizers count on the device, the others on the CPU.
        fused = optimizer.defaults.get("fused")
        for tensor in self._tensors:
            counter = torch.zeros((), device=tensor.device if fused else "cpu")
            means = {slot: torch.zeros_like(tensor.data) for slot in slots}
            self.state[tensor] = {"step": counter, **means}

    def set_steps_done(self, steps: int) -> None:
        """Steps that the state has seen: bias corrections go by it."""
        for tensor in self._tensors:
            self.state[tensor]["step"].fill_(steps)

    def begin_average(self) -> None:
        """Let the running mean of the weights start at the weights."""
        for tensor in self._tensors:
            self.state[tensor][AVERAGE].copy_(tensor.data)

    def move_average(self, decay: float) -> None:
        """Let it take in the weights, of which `decay` leaves the rest."""
        averages = [self.state[tensor][AVERAGE] for tensor in self._tensors]
        torch._foreach_lerp_(averages, [tensor.data for tensor in self._tensors], 1 - decay)

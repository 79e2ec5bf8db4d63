"""AdamW over what a rank holds.

The update is element by element, so it needs no collective and no DTensor: it runs on plain
tensors that share storage with the rank's shards, which keeps it fused under every plan.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from rayline.spec import OptimSpec

SLOTS = ("exp_avg", "exp_avg_sq")
"""AdamW's running means: of the gradient, and of its square."""


class ShardedAdamW:
    """AdamW (Loshchilov & Hutter 2019) on local shards, by parameter name."""

    def __init__(
        self, shards: Mapping[str, torch.Tensor], dims: Mapping[str, int], spec: OptimSpec
    ):
        """`shards`: the local storage of each parameter, float32. `dims`: number of dims of each
        whole parameter: matrices decay, vectors do not."""
        self._parameters = {name: torch.nn.Parameter(shard) for name, shard in shards.items()}
        decayed = [p for name, p in self._parameters.items() if dims[name] >= 2]
        others = [p for name, p in self._parameters.items() if dims[name] < 2]
        groups = [
            {"params": decayed, "weight_decay": spec.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        self._adamw = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=spec.lr,
            betas=spec.betas,
            eps=spec.eps,
            fused=True,
        )
        self.steps_done = 0
        self._materialize_state()

    def _materialize_state(self) -> None:
        """Make the running means now: they can be saved and filled before the first step."""
        for parameter in self._parameters.values():
            self._adamw.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
                **{slot: torch.zeros_like(parameter.data) for slot in SLOTS},
            }

    def slot(self, slot: str, name: str) -> torch.Tensor:
        """Live storage of one running mean."""
        state: torch.Tensor = self._adamw.state[self._parameters[name]][slot]
        return state

    def resume_at(self, steps_done: int) -> None:
        """Take over the number of steps that the running means have seen."""
        self.steps_done = steps_done
        for state in self._adamw.state.values():
            state["step"].fill_(steps_done)

    def step(self, gradients: Mapping[str, torch.Tensor], lr: float) -> None:
        """One update in place from this rank's gradients, by parameter name."""
        for group in self._adamw.param_groups:
            group["lr"] = lr
        for name, parameter in self._parameters.items():
            parameter.grad = gradients[name]
        self._adamw.step()
        for parameter in self._parameters.values():
            parameter.grad = None
        self.steps_done += 1

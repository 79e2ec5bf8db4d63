"""How a module's inputs and outputs are changed without a line of its own code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn

from rayline.parallel.collectives import copy_to, reduce_from

Change = Callable[[torch.Tensor], torch.Tensor]


class SummedLinear(nn.Linear):
    """A linear layer whose inputs are cut: ranks add up their products, then the bias comes."""

    add_up: Change

    @classmethod
    def take(cls, linear: nn.Linear, add_up: Change) -> None:
        """Make `linear` one of this kind, parameters and name unchanged."""
        linear.__class__ = cls
        cast(SummedLinear, linear).add_up = add_up

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - nn.Linear's own name
        """[.., own inputs] to [.., outputs], equal on all ranks."""
        whole = self.add_up(F.linear(input, self.weight))
        return whole if self.bias is None else whole + self.bias


def change_input(module: nn.Module, change: Change) -> None:
    """Let `change` have the first tensor that the module is called with."""

    def hook(
        _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

    module.register_forward_pre_hook(hook, with_kwargs=True)


def change_output(module: nn.Module, change: Change) -> None:
    """Let `change` have the first tensor that the module returns."""

    def hook(_: nn.Module, __: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (change(output[0]), *output[1:])
        return change(output)

    module.register_forward_hook(hook)


def change_experts(experts: nn.Module, group: dist.ProcessGroup) -> None:
    """Experts are called with tokens, the chosen experts and their weights. Each rank computes a
    part of every product, so the gradients of tokens and weights are parts too."""

    def enter(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        tokens, chosen, weights, *more = args
        return (copy_to(tokens, group), chosen, copy_to(weights, group), *more)

    experts.register_forward_pre_hook(enter)
    experts.register_forward_hook(lambda _, __, output: reduce_from(output, group))

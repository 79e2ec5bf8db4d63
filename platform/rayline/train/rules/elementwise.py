"""Rules that go element by element: torch's own optimizers, and Lion. No rank asks another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from rayline.spec import AdadeltaSpec, AdagradSpec, LionSpec, RmspropSpec, SgdSpec
from rayline.train.rules.member import Member, State, alike

MakeOptimizer = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]


class TorchRule:
    """One of torch's optimizers. Its state is made before the first step, so that it can be saved
    and filled at any time."""

    whole_slots: frozenset[str] = frozenset()

    def __init__(
        self, members: Mapping[str, Member], make: MakeOptimizer, slots: tuple[str, ...]
    ) -> None:
        """`slots`: torch's names of the state's tensors, each of the parameter's shape and zero
        at first; "step" goes without saying."""
        self._parameters = {m.name: torch.nn.Parameter(m.local) for m in members.values()}
        groups = [
            {
                "params": [self._parameters[member.name] for member in group],
                "weight_decay": group[0].weight_decay,
                "lr_scale": group[0].lr_scale,
            }
            for group in alike(members)
        ]
        self._optimizer = make(groups) if groups else None
        self._slots = slots
        self._counters: list[torch.Tensor] = []
        self._counted = 0

    def begin(self, member: Member) -> State:
        """Zeros."""
        assert self._optimizer is not None  # noqa: S101 (this member is in one of its groups)
        state = {slot: torch.zeros_like(member.local) for slot in self._slots}
        # Fused optimizers count on the device, the others on the CPU.
        fused = self._optimizer.defaults.get("fused")
        counter = torch.zeros((), device=member.local.device if fused else "cpu")
        self._counters.append(counter)
        self._optimizer.state[self._parameters[member.name]] = {**state, "step": counter}
        return state

    def step(
        self,
        members: Mapping[str, Member],
        state: Mapping[str, State],
        gradients: Mapping[str, torch.Tensor],
        lr: float,
        number: int,
    ) -> None:
        """torch's own step."""
        if self._optimizer is None:
            return
        if self._counted != number - 1:
            for counter in self._counters:
                counter.fill_(number - 1)
        for group in self._optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        for name, parameter in self._parameters.items():
            parameter.grad = gradients[name]
        self._optimizer.step()
        for parameter in self._parameters.values():
            parameter.grad = None
        self._counted = number


def adamw_rule(members: Mapping[str, Member], betas: tuple[float, float], eps: float) -> TorchRule:
    """AdamW (Loshchilov & Hutter 2019), fused."""

    def make(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.AdamW(groups, betas=betas, eps=eps, fused=True)

    return TorchRule(members, make, ("exp_avg", "exp_avg_sq"))


def sgd_rule(members: Mapping[str, Member], spec: SgdSpec) -> TorchRule:
    """SGD; a momentum that begins at zero equals torch's, which begins at the first gradient."""

    def make(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.SGD(groups, lr=spec.lr, momentum=spec.momentum, nesterov=spec.nesterov)

    return TorchRule(members, make, ("momentum_buffer",) if spec.momentum else ())


def rmsprop_rule(members: Mapping[str, Member], spec: RmspropSpec) -> TorchRule:
    """RMSprop."""

    def make(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.RMSprop(groups, alpha=spec.alpha, eps=spec.eps)

    return TorchRule(members, make, ("square_avg",))


def adagrad_rule(members: Mapping[str, Member], spec: AdagradSpec) -> TorchRule:
    """Adagrad."""

    def make(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.Adagrad(groups, eps=spec.eps)

    return TorchRule(members, make, ("sum",))


def adadelta_rule(members: Mapping[str, Member], spec: AdadeltaSpec) -> TorchRule:
    """Adadelta."""

    def make(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        return torch.optim.Adadelta(groups, rho=spec.rho, eps=spec.eps)

    return TorchRule(members, make, ("square_avg", "acc_delta"))


class LionRule:
    """Lion (Chen et al. 2023, algorithm 2)."""

    whole_slots: frozenset[str] = frozenset()

    def __init__(self, members: Mapping[str, Member], spec: LionSpec) -> None:
        self._groups = alike(members)
        self._betas = spec.betas

    def begin(self, member: Member) -> State:
        """A mean of zero."""
        return {"exp_avg": torch.zeros_like(member.local)}

    def step(
        self,
        members: Mapping[str, Member],
        state: Mapping[str, State],
        gradients: Mapping[str, torch.Tensor],
        lr: float,
        number: int,
    ) -> None:
        """The sign of the mean interpolated towards the gradient; then the mean moves on."""
        shown, kept = self._betas
        for group in self._groups:
            rate = lr * group[0].lr_scale
            weights = [member.local for member in group]
            means = [state[member.name]["exp_avg"] for member in group]
            grads = [gradients[member.name] for member in group]
            updates = torch._foreach_lerp(means, grads, 1 - shown)
            torch._foreach_sign_(updates)
            torch._foreach_mul_(weights, 1 - rate * group[0].weight_decay)
            torch._foreach_add_(weights, updates, alpha=-rate)
            torch._foreach_lerp_(means, grads, 1 - kept)

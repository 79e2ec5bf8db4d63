"""Rules that go element by element: torch's own optimizers, and Lion. No rank asks another, and it
does not matter how parameters are cut."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from rayline.spec import (
    AdadeltaSpec,
    AdagradSpec,
    AdamWSpec,
    LionSpec,
    OptimSpec,
    RmspropSpec,
    SgdSpec,
)
from rayline.train.rules.lion import Lion
from rayline.train.rules.member import Member, State, alike


def torch_optimizer(spec: OptimSpec, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """The optimizer of an elementwise kind; `groups` are torch's. Raises TypeError for others."""
    match spec:
        case AdamWSpec():  # Loshchilov & Hutter 2019
            betas, eps = spec.betas, spec.eps
            return torch.optim.AdamW(groups, lr=spec.lr, betas=betas, eps=eps, fused=True)
        case LionSpec():
            return Lion(groups, spec.betas)
        case SgdSpec():
            momentum, nesterov = spec.momentum, spec.nesterov
            return torch.optim.SGD(groups, lr=spec.lr, momentum=momentum, nesterov=nesterov)
        case RmspropSpec():
            return torch.optim.RMSprop(groups, lr=spec.lr, alpha=spec.alpha, eps=spec.eps)
        case AdagradSpec():
            return torch.optim.Adagrad(groups, lr=spec.lr, eps=spec.eps)
        case AdadeltaSpec():
            return torch.optim.Adadelta(groups, lr=spec.lr, rho=spec.rho, eps=spec.eps)
    raise TypeError(f"{type(spec).__name__} does not go element by element")


def torch_slots(spec: OptimSpec) -> tuple[str, ...]:
    """torch's names of the tensors of its state that have the parameter's shape; zero at first (so
    is SGD's momentum: torch's, which begins at the first gradient, comes to the same)."""
    if isinstance(spec, SgdSpec) and not spec.momentum:
        return ()
    return _SLOTS[type(spec)]


_SLOTS: dict[type[OptimSpec], tuple[str, ...]] = {
    AdamWSpec: ("exp_avg", "exp_avg_sq"),
    LionSpec: ("exp_avg",),
    SgdSpec: ("momentum_buffer",),
    RmspropSpec: ("square_avg",),
    AdagradSpec: ("sum",),
    AdadeltaSpec: ("square_avg", "acc_delta"),
}


class TorchRule:
    """One of torch's optimizers. Its state is made before the first step, so that it can be saved
    and filled at any time."""

    whole_slots: frozenset[str] = frozenset()

    def __init__(self, members: Mapping[str, Member], spec: OptimSpec) -> None:
        self._parameters = {m.name: torch.nn.Parameter(m.local) for m in members.values()}
        groups = [
            {
                "params": [self._parameters[member.name] for member in group],
                "weight_decay": group[0].weight_decay,
                "lr_scale": group[0].lr_scale,
            }
            for group in alike(members)
        ]
        self._optimizer = torch_optimizer(spec, groups) if groups else None
        self._slots = torch_slots(spec)
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

"""Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon): hidden matrices move along the
orthogonalized mean of their gradients, all else by AdamW."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fnmatch import fnmatchcase

import torch

from rayline.spec import AdamWSpec, MuonSpec
from rayline.train.rules.elementwise import TorchRule
from rayline.train.rules.member import Member, State
from rayline.train.shards import Shards

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic iteration, chosen for its slope at zero (Jordan et al. 2024)."""
_EPS = 1e-7
_RMS = 0.2
"""Root mean square of AdamW's updates (Liu et al. 2025, Muon is Scalable, section 2.2)."""


def orthogonalized(matrix: torch.Tensor, iterations: int) -> torch.Tensor:
    """U V^T of the matrix U S V^T, nearly: singular values come to lie between 0.5 and 1.5, by
    Newton-Schulz iterations. `matrix` [.., rows, columns]; leading dims count matrices (experts).

    It stays in the matrix's own type, where torch.optim.Muon goes down to bf16: there, the order
    of a sum over ranks would show in the weights."""
    wide = matrix if matrix.size(-2) <= matrix.size(-1) else matrix.mT
    wide = wide / wide.norm(dim=(-2, -1), keepdim=True).clamp(min=_EPS)
    a, b, c = COEFFICIENTS
    for _ in range(iterations):
        gram = wide @ wide.mT
        wide = a * wide + (b * gram + c * gram @ gram) @ wide
    return wide if matrix.size(-2) <= matrix.size(-1) else wide.mT


class MuonRule:
    """Muon, and AdamW beside it."""

    whole_slots: frozenset[str] = frozenset()

    def __init__(self, members: Mapping[str, Member], spec: MuonSpec, shards: Shards) -> None:
        self._spec = spec
        self._shards = shards
        self._matrices = {name: m for name, m in members.items() if self._turns(m)}
        others = {name: m for name, m in members.items() if name not in self._matrices}
        self._adamw = TorchRule(others, AdamWSpec(lr=spec.lr, betas=spec.betas, eps=spec.eps))

    def _turns(self, member: Member) -> bool:
        by_adamw = any(fnmatchcase(member.ruled_as, name) for name in self._spec.adamw_for)
        return len(member.shape) >= 2 and not by_adamw

    def begin(self, member: Member) -> State:
        """A mean of zero, or AdamW's two."""
        if member.name in self._matrices:
            return {"momentum_buffer": torch.zeros_like(member.local)}
        return self._adamw.begin(member)

    def step(
        self,
        members: Mapping[str, Member],
        state: Mapping[str, State],
        gradients: Mapping[str, torch.Tensor],
        lr: float,
        number: int,
    ) -> None:
        """One matrix after another is gathered and orthogonalized, on every rank of the stage."""
        self._adamw.step(members, state, gradients, lr, number)
        momentum = self._spec.momentum
        for name, member in self._matrices.items():
            mean, gradient = state[name]["momentum_buffer"], gradients[name]
            mean.lerp_(gradient, 1 - momentum)
            ahead = gradient.lerp(mean, momentum) if self._spec.nesterov else mean
            whole = self._shards.whole(name, ahead)
            update = self._shards.own(name, orthogonalized(whole, self._spec.iterations))
            rate = lr * member.lr_scale
            member.local.mul_(1 - rate * member.weight_decay)
            member.local.sub_(update, alpha=rate * self._adjustment(member))

    def _adjustment(self, member: Member) -> float:
        rows, columns = member.shape[-2:]
        if self._spec.lr_adjust == "match_rms_adamw":
            return _RMS * math.sqrt(max(rows, columns))
        return math.sqrt(max(1.0, rows / columns))

"""Rules that weigh a parameter as a whole: Adafactor and LAMB.

Both take sums over all of a parameter, so ranks combine what their rectangles come to; the updates
of all parameters stand at once meanwhile, as many bytes as the rank's weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from math import prod

import torch

from rayline.spec import AdafactorSpec, LambSpec
from rayline.train.rules.member import Member, State
from rayline.train.shards import Shards


class AdafactorRule:
    """Adafactor (Shazeer & Stern 2018, algorithms 4 and 5), as torch.optim.Adafactor has it: the
    last two dims are factored, vectors keep their mean of squares whole."""

    whole_slots = frozenset({"row_var", "col_var"})

    def __init__(self, spec: AdafactorSpec, shards: Shards) -> None:
        self._spec = spec
        self._shards = shards
        self._eps = torch.finfo(torch.float32).eps

    def begin(self, member: Member) -> State:
        """Zeros: a row's and a column's factor, or for vectors a mean for each element."""
        if len(member.shape) < 2:
            return {"variance": torch.zeros_like(member.local)}
        *outer, rows, columns = member.shape
        zeros = member.local.new_zeros
        return {"row_var": zeros((*outer, rows, 1)), "col_var": zeros((*outer, 1, columns))}

    def step(
        self,
        members: Mapping[str, Member],
        state: Mapping[str, State],
        gradients: Mapping[str, torch.Tensor],
        lr: float,
        number: int,
    ) -> None:
        """The two factors, the update that they scale, and its clipping."""
        share = number**self._spec.beta2_decay
        self._take_in(members, state, gradients, share)
        updates = {
            name: self._update(member, state[name], gradients[name])
            for name, member in members.items()
        }
        squares = self._shards.combine(
            {
                name: torch.stack([members[name].local.square().sum(), update.square().sum()])
                for name, update in updates.items()
            },
            "sum",
        )
        for name, member in members.items():
            count = max(1, prod(member.shape))
            size, update_size = (squares[name] / count).sqrt()
            rate = lr * member.lr_scale
            rate_now = min(rate, 1 / math.sqrt(number))
            alpha = size.clamp(min=self._spec.eps) * rate_now
            clip = (update_size / self._spec.clip_threshold).clamp(min=1.0)
            member.local.mul_(1 - rate * member.weight_decay)
            member.local.sub_(updates[name] * (alpha / clip))

    def _take_in(
        self,
        members: Mapping[str, Member],
        state: Mapping[str, State],
        gradients: Mapping[str, torch.Tensor],
        share: float,
    ) -> None:
        """Let the means of squares take in `share` of this gradient's."""
        sums: dict[str, torch.Tensor] = {}
        for name in members:
            squares, own = gradients[name].square(), state[name]
            if "variance" in own:
                own["variance"].lerp_(squares, share)
            else:
                row, column = torch.zeros_like(own["row_var"]), torch.zeros_like(own["col_var"])
                for one in self._shards.holdings[name].rectangles:
                    *outer, rows, columns = one.spans
                    held = squares[one.view]
                    row[(*outer, rows)] += held.sum(-1, keepdim=True)
                    column[(*outer, slice(None), columns)] += held.sum(-2, keepdim=True)
                sums[name] = torch.cat([row.flatten(), column.flatten()])
        for name, both in self._shards.combine(sums, "sum").items():
            row_var, col_var = state[name]["row_var"], state[name]["col_var"]
            *_, height, width = members[name].shape
            row, column = both.split([row_var.numel(), col_var.numel()])
            row_var.lerp_(row.view_as(row_var) / width, share)
            col_var.lerp_(column.view_as(col_var) / height, share)

    def _update(self, member: Member, own: State, gradient: torch.Tensor) -> torch.Tensor:
        """The rank's part of the gradient over the root of its estimated mean of squares."""
        if "variance" in own:
            estimate = own["variance"].clone()
        else:
            row, column = own["row_var"], own["col_var"]
            mean = row.mean(-2, keepdim=True).clamp(min=self._eps)
            estimate = torch.empty_like(gradient)
            for one in self._shards.holdings[member.name].rectangles:
                *outer, rows, columns = one.spans
                products = row[(*outer, rows)] * column[(*outer, slice(None), columns)]
                estimate[one.view] = products / mean[tuple(outer)]
        return estimate.clamp_(min=self._eps**2).rsqrt_().mul_(gradient)


class LambRule:
    """LAMB (You et al. 2020, algorithm 2), the norms taken as they are."""

    whole_slots: frozenset[str] = frozenset()

    def __init__(self, spec: LambSpec, shards: Shards) -> None:
        self._spec = spec
        self._shards = shards

    def begin(self, member: Member) -> State:
        """Two means of zero."""
        return {slot: torch.zeros_like(member.local) for slot in ("exp_avg", "exp_avg_sq")}

    def step(
        self,
        members: Mapping[str, Member],
        state: Mapping[str, State],
        gradients: Mapping[str, torch.Tensor],
        lr: float,
        number: int,
    ) -> None:
        """Adam's direction plus decay, as long as the parameter is."""
        updates = {
            name: self._direction(member, state[name], gradients[name], number)
            for name, member in members.items()
        }
        squares = self._shards.combine(
            {
                name: torch.stack([members[name].local.square().sum(), update.square().sum()])
                for name, update in updates.items()
            },
            "sum",
        )
        for name, member in members.items():
            size, update_size = squares[name].sqrt()
            moves = (size > 0) & (update_size > 0)
            trust = torch.where(moves, size / update_size, torch.ones_like(size))
            member.local.sub_(updates[name] * (trust * lr * member.lr_scale))

    def _direction(
        self, member: Member, own: State, gradient: torch.Tensor, number: int
    ) -> torch.Tensor:
        first, second = self._spec.betas
        own["exp_avg"].lerp_(gradient, 1 - first)
        own["exp_avg_sq"].mul_(second).addcmul_(gradient, gradient, value=1 - second)
        root = (own["exp_avg_sq"] / (1 - second**number)).sqrt_().add_(self._spec.eps)
        return (own["exp_avg"] / (1 - first**number) / root).add_(
            member.local, alpha=member.weight_decay
        )

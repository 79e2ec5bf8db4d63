"""AdamW whose two means are kept in 8 bits (Dettmers et al. 2022, 8-bit Optimizers via Block-wise
Quantization, section 2).

A mean is cut into blocks of 256 neighbours along its last dim; a block keeps its largest absolute
value in float32, and of each element the nearest of 256 shares of that. The blocks are those of the
whole parameter, so they are the same under every plan; ranks that share a block agree on its
largest value. Those values, 1/256 of the elements, are whole on every rank of the stage.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F

from rayline.spec import Adam8bitSpec
from rayline.train.rules.member import Member, State
from rayline.train.shards import Holding, Shards

BLOCK_ELEMENTS = 256
"""Neighbours that share a largest value. The paper's 2048, cut down as bitsandbytes does."""
_DECADES = 7


def dynamic_shares(*, signed: bool) -> torch.Tensor:
    """The 256 shares, ascending: 0, 1, and in each of seven decades below 1 twice as many as in
    the decade below, evenly spread (section 1.3; `create_dynamic_map` of bitsandbytes)."""
    shares = [0.0, 1.0]
    for decade in range(_DECADES):
        count = 2 ** (decade if signed else decade + 1)
        edges = torch.linspace(0.1, 1, count + 1, dtype=torch.float64)
        middles = (edges[:-1] + edges[1:]) / 2 * 10.0 ** (decade - _DECADES + 1)
        shares += middles.tolist() + ((-middles).tolist() if signed else [])
    return torch.tensor(sorted(shares), dtype=torch.float32)


class Mean8bit:
    """How one of the two means is packed and unpacked."""

    def __init__(self, slot: str, *, signed: bool) -> None:
        self.codes = f"{slot}_codes"
        self.scales = f"{slot}_scales"
        self._shares = dynamic_shares(signed=signed)
        self._middles = (self._shares[:-1] + self._shares[1:]) / 2

    def begin(self, member: Member) -> State:
        """Zeros: the code of no share, and blocks whose largest value is 0."""
        zero = int(torch.bucketize(0.0, self._middles))
        codes = torch.full_like(member.local, zero, dtype=torch.uint8)
        *outer, width = member.shape
        blocks = -(-width // BLOCK_ELEMENTS)
        return {self.codes: codes, self.scales: member.local.new_zeros((*outer, blocks))}

    def unpacked(self, holding: Holding, own: State) -> torch.Tensor:
        """What this rank holds of the mean, float32."""
        shares = self._shares.to(own[self.codes].device)
        return shares[own[self.codes].int()] * _spread(own[self.scales], holding)

    def largest(self, holding: Holding, own: State, mean: torch.Tensor) -> torch.Tensor:
        """Largest absolute value that this rank has of each block; 0 where it has nothing."""
        found = torch.zeros_like(own[self.scales])
        for one in holding.rectangles if mean.numel() else ():
            *outer, columns = one.spans
            begin, end = columns.start // BLOCK_ELEMENTS, -(-columns.stop // BLOCK_ELEMENTS)
            margins = (columns.start - begin * BLOCK_ELEMENTS, end * BLOCK_ELEMENTS - columns.stop)
            held = F.pad(mean[one.view].abs(), margins)
            # Two rectangles of one rank may share a block.
            blocks = found[(*outer, slice(begin, end))]
            blocks.copy_(blocks.maximum(held.unflatten(-1, (end - begin, BLOCK_ELEMENTS)).amax(-1)))
        return found

    def pack(self, holding: Holding, own: State, mean: torch.Tensor, largest: torch.Tensor) -> None:
        """Keep `mean`, given the largest value of each whole block."""
        own[self.scales].copy_(largest)
        spread = _spread(largest, holding)
        shares = torch.where(spread > 0, mean / spread, torch.zeros_like(mean))
        own[self.codes].copy_(torch.bucketize(shares, self._middles.to(mean.device)))


def _spread(scales: torch.Tensor, holding: Holding) -> torch.Tensor:
    """For each element that this rank holds the value of its block."""
    spread = scales.new_empty(holding.local.shape)
    for one in holding.rectangles:
        *outer, columns = one.spans
        places = torch.arange(columns.start, columns.stop, device=scales.device)
        spread[one.view] = scales[tuple(outer)][..., places // BLOCK_ELEMENTS]
    return spread


class Adam8bitRule:
    """AdamW, unpacked and packed again for each parameter in turn."""

    def __init__(self, spec: Adam8bitSpec, shards: Shards) -> None:
        self._spec = spec
        self._shards = shards
        self._first = Mean8bit("exp_avg", signed=True)
        self._second = Mean8bit("exp_avg_sq", signed=False)
        self.whole_slots = frozenset({self._first.scales, self._second.scales})

    def begin(self, member: Member) -> State:
        """Two packed means of zero."""
        return {**self._first.begin(member), **self._second.begin(member)}

    def step(
        self,
        members: Mapping[str, Member],
        state: Mapping[str, State],
        gradients: Mapping[str, torch.Tensor],
        lr: float,
        number: int,
    ) -> None:
        """One collective for each parameter: together, all means would stand in float32."""
        decay, decay_sq = self._spec.betas
        for name, member in members.items():
            own, gradient = state[name], gradients[name]
            holding = self._shards.holdings[name]
            mean = self._first.unpacked(holding, own).lerp_(gradient, 1 - decay)
            mean_sq = self._second.unpacked(holding, own).mul_(decay_sq)
            mean_sq.addcmul_(gradient, gradient, value=1 - decay_sq)
            largest = torch.stack(
                [
                    self._first.largest(holding, own, mean),
                    self._second.largest(holding, own, mean_sq),
                ]
            )
            agreed, agreed_sq = self._shards.combine({name: largest}, "max")[name]
            self._first.pack(holding, own, mean, agreed)
            self._second.pack(holding, own, mean_sq, agreed_sq)
            rate = lr * member.lr_scale
            root = mean_sq.div_(1 - decay_sq**number).sqrt_().add_(self._spec.eps)
            member.local.mul_(1 - rate * member.weight_decay)
            member.local.addcdiv_(mean, root, value=-rate / (1 - decay**number))

"""What an optimizer may ask about parameters of which each rank holds some rectangles.

An update that is element by element needs none of this. Others need a whole matrix (Muon), or sums
over a parameter's rows, columns or all of it (Adafactor, LAMB, blocks of Adam's 8-bit means). Both
come down to one thing: each rectangle is counted once, and the ranks of a stage are summed over.
So the numbers do not depend on the plan, but for the order of summation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Literal

import torch
import torch.distributed as dist

from rayline.parallel.layout import Held


@dataclass(frozen=True, slots=True)
class Holding:
    """What this rank holds of one parameter."""

    local: torch.Tensor
    """Live storage, float32, which may be empty."""
    shape: tuple[int, ...]
    """Shape of the whole parameter."""
    rectangles: tuple[Held, ...]
    """Where the parts of `local` lie in the whole parameter; they do not overlap."""
    counts: bool = True
    """True on exactly one of the stage's ranks that hold these rectangles."""
    ruled_as: str | None = None
    """Name that groups and other patterns go by, where it isn't the parameter's own: a tied copy
    is stepped as its original is."""


class Shards:
    """The parameters of one stage and the ranks among which they are shared out."""

    def __init__(
        self, holdings: Mapping[str, Holding], ranks: dist.ProcessGroup | None = None
    ) -> None:
        """`holdings`: by Hugging Face parameter name, in the same order on every rank. `ranks`:
        those that together hold this stage's parameters; None where this rank alone does."""
        self.holdings = dict(holdings)
        self._ranks = ranks

    @property
    def is_first(self) -> bool:
        """Whether this rank is the one that writes what all ranks of the stage hold alike."""
        return self._ranks is None or dist.get_rank(self._ranks) == 0

    def whole(self, name: str, local: torch.Tensor) -> torch.Tensor:
        """A whole tensor of the parameter's shape from every rank's part of it. Collective
        within the stage; every rank gets the same."""
        if self._ranks is None:
            return local
        holding = self.holdings[name]
        whole = torch.zeros(holding.shape, dtype=local.dtype, device=local.device)
        if holding.counts:
            for one in holding.rectangles:
                whole[one.spans] = local[one.view]
        # Adding zeros changes nothing, so this gathers, whatever the rectangles look like.
        dist.all_reduce(whole, group=self._ranks)
        return whole

    def own(self, name: str, whole: torch.Tensor) -> torch.Tensor:
        """The rank's part of a whole tensor of the parameter's shape, laid out as it holds it."""
        holding = self.holdings[name]
        own = whole.new_empty(holding.local.shape)
        for one in holding.rectangles:
            own[one.view] = whole[one.spans]
        return own

    def combine(
        self, values: Mapping[str, torch.Tensor], how: Literal["sum", "max"]
    ) -> dict[str, torch.Tensor]:
        """For each parameter the sum, or the maximum, of what its rectangles come to.

        `values`: a float32 tensor for each parameter, of any shape that is the same on every rank,
        such as a row's sums with zeros where this rank holds nothing of the row; for "max" no
        value is negative. One collective within the stage, on all parameters together."""
        if self._ranks is None or not values:
            return dict(values)
        flat = torch.cat(
            [
                (value if self.holdings[name].counts else torch.zeros_like(value)).flatten()
                for name, value in values.items()
            ]
        )
        op = dist.ReduceOp.SUM if how == "sum" else dist.ReduceOp.MAX
        dist.all_reduce(flat, op=op, group=self._ranks)
        parts = flat.split([prod(value.shape) for value in values.values()])
        return {
            name: part.view(value.shape)
            for (name, value), part in zip(values.items(), parts, strict=True)
        }

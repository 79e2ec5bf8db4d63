"""How many tokens of a sequence an expert takes at most, and who is left out.

An expert takes as many of a sequence's choices as its capacity allows, in the order of the tokens;
a choice that finds it full is dropped: it adds nothing to the token, whose other choices and whose
residual stream go on unchanged (Fedus et al. 2021, Switch Transformers, section 2.2: capacity is
the capacity factor times the choices that each expert would get were they spread evenly). Where
GShard counts over a group of tokens (Lepikhin et al. 2020, algorithm 1), the group here is one
sequence: no plan but one with a context axis cuts it, and that axis gathers its choices, so the
same choices are dropped under every plan. Tokens are served in their order and nothing else, first
choices not before second ones: what becomes of a token then depends on none that follow it, as a
causal model needs. Nothing is dropped outside of training.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import torch
import torch.distributed as dist

from rayline.parallel.collectives import gather
from rayline.parallel.experts import Forward, compute_rows
from rayline.parallel.sequence import SequencePart


@dataclass(frozen=True, slots=True)
class Capacity:
    """The rule for the experts of one layer, as one rank applies it."""

    factor: float
    """The capacity over the choices that each expert has where all are chosen alike."""
    experts: int
    """Experts of the layer, on all ranks."""
    sequence_tokens: int
    """Tokens that this rank holds of each sequence."""
    part: SequencePart
    """Which tokens these are."""
    context: dist.ProcessGroup | None
    """The ranks that hold the other parts of these sequences; None where there are none."""

    def kept(self, chosen: torch.Tensor) -> torch.Tensor:
        """Which choices of this rank's tokens are not dropped: int64 [tokens, choices] to bool of
        that shape. All ranks of `context` call it."""
        own = chosen.detach().view(-1, self.sequence_tokens, chosen.shape[-1])
        if self.context is None:
            return self._kept_of_whole(own).view_as(chosen)
        order = self.part.order()
        blocks = gather(own, 1, self.context).chunk(len(order), 1)
        kept = self._kept_of_whole(torch.cat([blocks[place] for place in order], 1))
        spans = self.part.spans(self.sequence_tokens)
        return torch.cat([kept[:, begin:end] for begin, end in spans], 1).view_as(chosen)

    def _kept_of_whole(self, chosen: torch.Tensor) -> torch.Tensor:
        limit = expert_capacity(self.factor, chosen[0].numel(), self.experts)
        return (places_in_line(chosen.flatten(1), self.experts) < limit).view_as(chosen)


def expert_capacity(factor: float, choices: int, experts: int) -> int:
    """The most choices that one expert takes of a sequence which makes `choices`: the factor, read
    as the decimal number that it is written as, times the even share, rounded up."""
    return -(-Fraction(str(factor)) * choices // experts)


def places_in_line(chosen: torch.Tensor, experts: int) -> torch.Tensor:
    """For each choice how many before it, in its sequence, chose the same expert: int64 [sequences,
    choices], in the order of tokens, to int64 of that shape."""
    counts = torch.zeros(len(chosen), experts, dtype=torch.int64, device=chosen.device)
    counts.scatter_add_(1, chosen, torch.ones_like(chosen))
    begins = counts.cumsum(1) - counts
    by_expert, order = chosen.sort(dim=1, stable=True)
    places = torch.arange(chosen.shape[1], device=chosen.device) - begins.gather(1, by_expert)
    return torch.empty_like(places).scatter_(1, order, places)


def apply_kept(
    compute: Forward,
    kept: torch.Tensor,
    tokens: torch.Tensor,
    chosen: torch.Tensor,
    weights: torch.Tensor,
) -> torch.Tensor:
    """What experts make of the choices that are `kept`, and nothing for the others: `tokens`
    [tokens, hidden]; `kept`, `chosen`, `weights` [tokens, choices]. Returns [tokens, hidden].
    `compute`, the experts' forward pass, sees the kept choices only, each as a token of its own."""
    places = kept.flatten().nonzero().squeeze(1)
    rows = tokens[places // chosen.shape[-1]]
    made = compute_rows(compute, rows, chosen.flatten()[places])
    results = made.new_zeros(chosen.numel(), made.shape[-1]).index_copy(0, places, made)
    weighted = results.view(*chosen.shape, -1) * weights.unsqueeze(-1)
    return weighted.sum(dim=1).to(tokens.dtype)

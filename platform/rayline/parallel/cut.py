"""How one dim of a whole tensor is cut over the tensor axis: ranges of whole numbers, no torch.

A rank holds some half-open ranges of the dim, one behind another: one range for a plain cut, one in
each part for a tensor that packs several matrices (gate and up in one), the same range as its
neighbours where there are fewer key-value heads than ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise

Span = tuple[int, int]
"""The places begin <= i < end of a dim."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Which part of the dim `dim` each tensor rank holds."""

    dim: int
    spans: tuple[tuple[Span, ...], ...]
    """For each rank, in order: the ranges that it holds, in the order in which it holds them."""

    def length(self, rank: int) -> int:
        """Places of the dim that `rank` holds."""
        return sum(end - begin for begin, end in self.spans[rank])

    def holders(self, rank: int) -> tuple[int, ...]:
        """The ranks that hold the same places as `rank`, itself among them, ascending."""
        mine = self.spans[rank]
        return tuple(other for other, spans in enumerate(self.spans) if spans == mine)

    @property
    def shared(self) -> bool:
        """Whether several ranks hold the same places."""
        return len(set(self.spans)) < len(self.spans)


def even_cut(dim: int, size: int, ranks: int) -> Cut:
    """Consecutive ranges, as even as it goes: the first ranks hold one place more."""
    return Cut(dim, tuple((span,) for span in _even_spans(0, size, ranks)))


def packed_cut(dim: int, size: int, ranks: int, parts: int) -> Cut:
    """`parts` equal matrices that lie one behind another along the dim, each cut evenly."""
    share = size // parts
    columns = [_even_spans(part * share, share, ranks) for part in range(parts)]
    return Cut(dim, tuple(tuple(column[rank] for column in columns) for rank in range(ranks)))


def heads_cut(dim: int, heads: int, head_size: int, ranks: int) -> Cut:
    """Whole heads; where there are fewer heads than ranks, neighbouring ranks hold the same one.

    `heads` divides `ranks` or is divided by it; ValueError otherwise."""
    if heads % ranks and ranks % heads:
        raise ValueError(f"{heads} heads go neither evenly over {ranks} ranks nor the other way")
    if heads % ranks == 0:
        return even_cut(dim, heads * head_size, ranks)
    sharing = ranks // heads
    return Cut(
        dim,
        tuple(
            ((rank // sharing * head_size, (rank // sharing + 1) * head_size),)
            for rank in range(ranks)
        ),
    )


def _even_spans(begin: int, size: int, ranks: int) -> list[Span]:
    share, over = divmod(size, ranks)
    ends = list(accumulate((share + (rank < over) for rank in range(ranks)), initial=begin))
    return list(pairwise(ends))

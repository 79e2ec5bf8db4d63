"""Attention over sequences that ranks hold parts of, keys and values going round (Ring Attention,
Liu et al. 2023, arXiv:2310.01889).

Each rank keeps its queries. Keys and values go from rank to rank; what has come is attended to
while the next is on its way, and the shares of the softmax are corrected by the logarithm of the
sum of exponentials, which grows with each part (Milakov & Gimelshein 2018; Dao 2023,
FlashAttention-2, section 3.1). On the way back the gradients of keys and values go round with them
and come home with the last pass. No head is exchanged, so the ranks need not divide the heads; the
zigzag order of `rayline.parallel.sequence` gives each rank the same work. Pairs of blocks of which
nothing is visible are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch.autograd import Function

from rayline.parallel.collectives import pass_on
from rayline.parallel.sequence import SequencePart

_ROWS_AT_ONCE = 512
"""Queries whose scores stand at a time."""


@dataclass(frozen=True, slots=True)
class Scores:
    """How queries and keys become scores."""

    scaling: float
    window: int | None
    """Tokens that a token sees, itself included; None: all before it."""
    softcap: float | None
    """Scores are squeezed into (-softcap, softcap) (Gemma 2, section 2)."""

    def raw(self, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        """float32 [.., queries, keys], before the mask."""
        scores = (query @ key.mT).float().mul_(self.scaling)
        if self.softcap is None:
            return scores
        return scores.div_(self.softcap).tanh_().mul_(self.softcap)

    def through_cap(self, of_scores: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """The gradient of what was squeezed, from that of the `scores` it became."""
        if self.softcap is None:
            return of_scores
        return of_scores * (1 - (scores / self.softcap).square())

    def sees_any(self, queries: range, keys: range) -> bool:
        """Whether one of the queries' places sees one of the keys'."""
        if keys.start > queries[-1]:
            return False
        return self.window is None or queries.start - keys[-1] < self.window

    def hidden(self, queries: range, keys: range, device: torch.device) -> torch.Tensor | None:
        """bool [queries, keys]: True where a query's place does not see a key's; None where each
        sees all."""
        nearest, farthest = queries.start - keys[-1], queries[-1] - keys.start
        if nearest >= 0 and (self.window is None or farthest < self.window):
            return None
        rows = torch.arange(queries.start, queries.stop, device=device).unsqueeze(1)
        distance = rows - torch.arange(keys.start, keys.stop, device=device)
        found = distance < 0
        return found if self.window is None else found | (distance >= self.window)


def ring_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scores: Scores,
    part: SequencePart,
    group: dist.ProcessGroup,
) -> torch.Tensor:
    """Causal attention. `query` [sequences, heads, own tokens, head size]; `key` and `value` the
    same with as many heads, or a divisor of these; returns what `query` is like. Products are in
    the tensors' own type, sums and the softmax in float32. Every rank of `group` calls it, with
    parts of one length; `part` says which places those are."""
    return cast(torch.Tensor, _Ring.apply(query, key, value, scores, part, group))


@dataclass(frozen=True, slots=True)
class _Pair:
    """Some of this rank's queries and a block of keys, of which they see something."""

    rows: slice
    keys: slice
    hidden: torch.Tensor | None


class _Round:
    """One rank's geometry: which queries meet which keys at each stop."""

    def __init__(
        self, scores: Scores, part: SequencePart, tokens: int, device: torch.device
    ) -> None:
        self._scores, self._part = scores, part
        self._device = device
        self._length = tokens // len(part.blocks(0))

    def pairs(self, come_from: int) -> Iterator[_Pair]:
        """What this rank computes on the keys of the rank at place `come_from`. A token's own block
        comes first: from there on each has seen something."""
        length = self._length
        for number, block in enumerate(self._part.blocks(self._part.place)):
            theirs = list(enumerate(self._part.blocks(come_from)))
            theirs.sort(key=lambda one: one[1] != block)
            for begin in range(0, length, _ROWS_AT_ONCE):
                end = min(length, begin + _ROWS_AT_ONCE)
                queries = range(block * length + begin, block * length + end)
                for other, their_block in theirs:
                    keys = range(their_block * length, (their_block + 1) * length)
                    if self._scores.sees_any(queries, keys):
                        yield _Pair(
                            slice(number * length + begin, number * length + end),
                            slice(other * length, (other + 1) * length),
                            self._scores.hidden(queries, keys, self._device),
                        )


def _grouped(query: torch.Tensor, kv_heads: int) -> torch.Tensor:
    """[sequences, heads, tokens, size] to [sequences, kv heads, heads a kv head, tokens, size]."""
    return query.unflatten(1, (kv_heads, -1))


class _Ring(Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        scores: Scores,
        part: SequencePart,
        group: dist.ProcessGroup,
    ) -> torch.Tensor:
        own = _grouped(query, key.shape[1])
        output = own.new_zeros(own.shape, dtype=torch.float32)
        log_sum = output.new_full(own.shape[:-1], float("-inf"))
        geometry = _Round(scores, part, query.shape[2], query.device)
        held = torch.stack([key, value])
        for stop in range(part.ranks):
            is_last = stop == part.ranks - 1
            coming = None if is_last else pass_on(held, group)
            keys, values = held.unsqueeze(3)
            for pair in geometry.pairs((part.place - stop) % part.ranks):
                found = scores.raw(own[..., pair.rows, :], keys[..., pair.keys, :])
                if pair.hidden is not None:
                    found.masked_fill_(pair.hidden, float("-inf"))
                before = log_sum[..., pair.rows]
                after = torch.logaddexp(before, found.logsumexp(-1))
                shares = found.sub_(after.unsqueeze(-1)).exp_()
                output[..., pair.rows, :] *= (before - after).exp_().unsqueeze(-1)
                output[..., pair.rows, :] += shares.to(query.dtype) @ values[..., pair.keys, :]
                log_sum[..., pair.rows] = after
            held = held if coming is None else coming.wait()
        result = output.to(query.dtype).flatten(1, 2)
        ctx.save_for_backward(query, key, value, result, log_sum)
        ctx.scores, ctx.part, ctx.group = scores, part, group
        return result

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query, key, value, result, log_sum = ctx.saved_tensors
        scores, part, group = ctx.scores, ctx.part, ctx.group
        own, of_output = _grouped(query, key.shape[1]), _grouped(grads[0], key.shape[1])
        # Of each query: what all its shares' gradients have in common (FlashAttention-2, section
        # 3.1.2, D).
        common = (of_output.float() * _grouped(result, key.shape[1]).float()).sum(-1)
        of_query = torch.zeros_like(own, dtype=torch.float32)
        geometry = _Round(scores, part, query.shape[2], query.device)
        held = torch.stack([key, value])
        of_held = torch.zeros_like(held, dtype=torch.float32)
        for stop in range(part.ranks):
            is_last = stop == part.ranks - 1
            coming = None if is_last else pass_on(held, group)
            keys, values = held.unsqueeze(3)
            for pair in geometry.pairs((part.place - stop) % part.ranks):
                rows, places = own[..., pair.rows, :], keys[..., pair.keys, :]
                of_rows = of_output[..., pair.rows, :]
                found = scores.raw(rows, places)
                shares = (found - log_sum[..., pair.rows].unsqueeze(-1)).exp_()
                if pair.hidden is not None:
                    shares.masked_fill_(pair.hidden, 0.0)
                of_shares = (of_rows @ values[..., pair.keys, :].mT).float()
                of_found = shares * (of_shares - common[..., pair.rows].unsqueeze(-1))
                of_found = scores.through_cap(of_found, found).mul_(scores.scaling).to(query.dtype)
                of_query[..., pair.rows, :] += of_found @ places
                # Over the heads that share these keys.
                of_held[0][..., pair.keys, :] += (of_found.mT @ rows).float().sum(2)
                of_held[1][..., pair.keys, :] += (
                    (shares.to(query.dtype).mT @ of_rows).float().sum(2)
                )
            held = held if coming is None else coming.wait()
            if part.ranks > 1:
                of_held = pass_on(of_held, group).wait()
        of_key, of_value = of_held.to(key.dtype)
        return of_query.to(query.dtype).flatten(1, 2), of_key, of_value, None, None, None

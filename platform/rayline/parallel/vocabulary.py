"""The vocabulary over the tensor axis: embedding and logits are cut, and never joined in training.

A rank holds some rows of the embedding and of the head. Looking up adds the ranks' rows (all but
one are zero); the loss needs of each token the logarithm of the sum of exponentials, the target's
logit and the mean logit, which the ranks add up token by token: three numbers where joining the
logits would move the whole vocabulary (Megatron-LM, Shoeybi et al. 2019, section 3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.autograd import Function

from rayline.parallel.collectives import reduce_and_keep_own, reduce_from

_ROWS_AT_ONCE = 1024
"""Tokens whose logits are turned to float32 together: it bounds what the loss takes beside the
logits themselves."""


@dataclass(frozen=True, slots=True)
class VocabularySlice:
    """The consecutive tokens whose logits this rank holds, and those it shares the vocabulary with;
    without a group it holds all of them."""

    first: int
    size: int
    vocab: int
    """Tokens in all."""
    group: dist.ProcessGroup | None


@dataclass(frozen=True, slots=True)
class TokenLogits:
    """What the loss needs of each token's logits; float32, differentiable, equal on all ranks."""

    log_sum: torch.Tensor
    """Logarithm of the sum of exponentials."""
    target: torch.Tensor
    """The target's logit."""
    mean: torch.Tensor
    """Mean over the vocabulary."""


def token_logits(
    logits: torch.Tensor, targets: torch.Tensor, held: VocabularySlice, *, with_mean: bool = False
) -> TokenLogits:
    """`logits` [tokens, held.size] of any float type, `targets` int64 [tokens], each below
    held.vocab. `mean` is zero unless `with_mean` asks for it. Every rank of the group calls it."""
    return TokenLogits(*_TokenLogits.apply(logits, targets, held, with_mean))


class _TokenLogits(Function):
    """Keeps the logits as they are and one number a token: the exponentials are computed anew.

    The gradient is put together in float32 and rounded once. Rounded part by part, what is left of
    a likely target (nearly one, less one) would be noise in bfloat16."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: torch.Tensor,
        targets: torch.Tensor,
        held: VocabularySlice,
        with_mean: bool,
    ) -> tuple[torch.Tensor, ...]:
        own = targets - held.first
        here = (own >= 0) & (own < held.size)
        own = own.clamp(0, held.size - 1).unsqueeze(-1)
        largest = logits.amax(-1).float()
        target = logits.gather(-1, own).squeeze(-1).float() * here
        mean = torch.zeros_like(target)
        if with_mean:
            mean = logits.sum(-1, dtype=torch.float32) / held.vocab
        if held.group is not None:
            dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=held.group)
        total = torch.cat(
            [
                (rows.float() - top.unsqueeze(-1)).exp_().sum(-1)
                for rows, top in zip(
                    logits.split(_ROWS_AT_ONCE), largest.split(_ROWS_AT_ONCE), strict=True
                )
            ]
        )
        if held.group is not None:
            together = torch.stack([total, target, mean])
            dist.all_reduce(together, group=held.group)
            total, target, mean = together.unbind()
        log_sum = total.log() + largest
        ctx.save_for_backward(logits, log_sum, own, here)
        ctx.vocab = held.vocab
        return log_sum, target, mean

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[Any, ...]:
        logits, log_sum, own, here = ctx.saved_tensors
        of_sum, of_target, of_mean = (grad.unsqueeze(-1) for grad in grads)
        result = torch.empty_like(logits)
        for begin in range(0, logits.shape[0], _ROWS_AT_ONCE):
            rows = slice(begin, begin + _ROWS_AT_ONCE)
            shares = (logits[rows].float() - log_sum[rows].unsqueeze(-1)).exp_()
            shares.mul_(of_sum[rows]).add_(of_mean[rows] / ctx.vocab)
            shares.scatter_add_(-1, own[rows], of_target[rows] * here[rows].unsqueeze(-1))
            result[rows] = shares
        return result, None, None, None


class VocabularyEmbedding:
    """Hooks that let an embedding look up in its own rows only, and add what the ranks found."""

    def __init__(
        self, embedding: nn.Embedding, held: VocabularySlice, *, keep_own_sequence: bool
    ) -> None:
        """`embedding` has its own rows already. With `keep_own_sequence` each rank goes on with
        its part of the sequence."""
        if held.group is None:
            raise ValueError("a vocabulary without a group is whole")
        self._held, self._group, self._keep_own = held, held.group, keep_own_sequence
        self._absent: torch.Tensor | None = None
        # The row of this token has no gradient; it counts rows, so it moves with them.
        padding = embedding.padding_idx
        inside = padding is not None and held.first <= padding < held.first + held.size
        embedding.padding_idx = padding - held.first if padding is not None and inside else None
        embedding.num_embeddings = held.size
        embedding.register_forward_pre_hook(self._own_rows)
        embedding.register_forward_hook(self._add_up)

    def _own_rows(self, _: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        ids, *more = args
        own = ids - self._held.first
        self._absent = (own < 0) | (own >= self._held.size)
        return (own.masked_fill(self._absent, 0), *more)

    def _add_up(self, _: nn.Module, __: Any, found: torch.Tensor) -> torch.Tensor:
        absent, self._absent = self._absent, None
        if absent is None:
            raise RuntimeError("the embedding was not called by its forward")
        own = found.masked_fill(absent.unsqueeze(-1), 0.0)
        if self._keep_own:
            return reduce_and_keep_own(own, 1, self._group)
        return reduce_from(own, self._group)

"""A loss computed in chunks of tokens, with its gradients, so that no tensor over all tokens and
the whole vocabulary is ever there.

Forward goes through one chunk after another and computes the chunk's loss and gradients at once,
while the chunk's logits stand; what is kept for the backward pass is the gradients, which it only
scales (FusedLinearCrossEntropy of Liger Kernel, Hsu et al. 2024, section 3.2). That costs no
product of matrices more than the plain loss does. Kept are as many bytes as the hidden states and
the head's weights have, instead of the logits: a gain where there are more tokens than the hidden
states are wide.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import nn
from torch.autograd import Function

ChunkLoss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Maps the hidden states [sequences, tokens, hidden] and the labels of one chunk to the sum of its
losses, a float32 scalar."""


def summed_in_chunks(
    hidden: torch.Tensor,
    labels: torch.Tensor,
    loss: ChunkLoss,
    parameters: Sequence[nn.Parameter],
    *,
    chunk_tokens: int,
    sequence_parts: int = 1,
) -> torch.Tensor:
    """The sum of `loss` over chunks of about `chunk_tokens` tokens, a float32 scalar.

    `hidden` [sequences, tokens, width], of which `sequence_parts` ranks hold parts; `labels` int64
    [sequences, tokens x sequence_parts], of all parts one behind another. `parameters`: all that
    `loss` differentiates by besides the hidden states. Gradients of the parameters are added up in
    float32 and rounded once. Collectives inside `loss` and its backward pass are called once a
    chunk, in the forward pass, by every rank that shares the tokens or the vocabulary."""
    arguments = (hidden, labels, loss, chunk_tokens, sequence_parts, *parameters)
    return cast(torch.Tensor, _SummedInChunks.apply(*arguments))


def chunks_of(
    hidden: torch.Tensor, labels: torch.Tensor, chunk_tokens: int, sequence_parts: int
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Hidden states and labels that belong together; a chunk has the same places of each sequence
    and of each part, one place at least."""
    places = max(1, chunk_tokens // (hidden.shape[0] * sequence_parts))
    by_part = labels.unflatten(1, (sequence_parts, hidden.shape[1]))
    for rows, targets in zip(hidden.split(places, 1), by_part.split(places, 2), strict=True):
        yield rows, targets.flatten(1)


_FIXED = 5
"""Inputs of the function before the parameters."""


class _SummedInChunks(Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        labels: torch.Tensor,
        loss: ChunkLoss,
        chunk_tokens: int,
        sequence_parts: int,
        *parameters: torch.Tensor,
    ) -> torch.Tensor:
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        wanted = [one for one in parameters if one.requires_grad]
        differentiates = any(ctx.needs_input_grad)
        of_hidden: list[torch.Tensor] = []
        sums: list[torch.Tensor] = []
        for rows, targets in chunks_of(hidden, labels, chunk_tokens, sequence_parts):
            if not differentiates:
                total += loss(rows, targets)
                continue
            with torch.enable_grad():
                own = rows.detach().requires_grad_()
                value = loss(own, targets)
                of_rows, *grads = torch.autograd.grad(value, (own, *wanted))
            total += value.detach()
            of_hidden.append(of_rows)
            if sums:
                torch._foreach_add_(sums, grads)
            else:
                sums = [grad.float() for grad in grads]
        if differentiates:
            kept = [summed.to(one.dtype) for one, summed in zip(wanted, sums, strict=True)]
            ctx.save_for_backward(torch.cat(of_hidden, 1), *kept)
            ctx.wanted = [place for place, one in enumerate(parameters) if one.requires_grad]
        return total

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        (grad,) = grads
        of_hidden, *kept = ctx.saved_tensors
        of_inputs: list[torch.Tensor | None] = [None] * len(ctx.needs_input_grad)
        # A split backward pass comes twice, and asks for one kind of gradient at a time.
        for place, one in zip(
            [0, *(_FIXED + n for n in ctx.wanted)], (of_hidden, *kept), strict=True
        ):
            if ctx.needs_input_grad[place]:
                of_inputs[place] = one * grad
        return tuple(of_inputs)

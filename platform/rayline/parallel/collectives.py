"""Collectives of one axis as autograd functions, in pairs: what one does forward, the other does
backward (Megatron-LM, Shoeybi et al. 2019, section 3, the operators f and g; for sequences
Korthikanti et al. 2022, section 4.2).

| function | forward | backward |
| --- | --- | --- |
| copy_to | nothing | sum over the ranks |
| reduce_from | sum over the ranks | nothing |
| gather | join the ranks' parts | keep the own part |
| keep_own | keep the own part | join the ranks' parts |
| gather_summing | join the ranks' parts | sum over the ranks, keep the own part |
| reduce_and_keep_own | sum over the ranks, keep the own part | join the ranks' parts |
| exchange | cut one dim, join another | the same the other way round |
| exchange_rows | send each rank its rows, join those received | the same the other way round |

`copy_to` belongs before work that each rank does for its own part only: its input's gradients are
parts of a sum. `gather` belongs before work that all ranks repeat: its output's gradients are
equal.
`pass_on` sends round a ring, and is no autograd function.
Every rank of the group calls each function; parts are equal in size unless `sizes` says otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch.autograd import Function

from rayline.parallel.waiting import wait_all

Group = dist.ProcessGroup


def copy_to(tensor: torch.Tensor, group: Group) -> torch.Tensor:
    """The same tensor; its gradient is summed over the group."""
    return cast(torch.Tensor, _CopyTo.apply(tensor, group))


def reduce_from(tensor: torch.Tensor, group: Group) -> torch.Tensor:
    """The sum over the group, on every rank."""
    return cast(torch.Tensor, _ReduceFrom.apply(tensor, group))


def gather(
    tensor: torch.Tensor, dim: int, group: Group, sizes: Sequence[int] | None = None
) -> torch.Tensor:
    """All ranks' parts joined along `dim`; all ranks go on with the same work. `sizes`: length of
    each rank's part where they differ."""
    return cast(torch.Tensor, _Gather.apply(tensor, dim, group, sizes, False))


def gather_summing(tensor: torch.Tensor, dim: int, group: Group) -> torch.Tensor:
    """All ranks' parts joined along `dim`; each rank goes on with work of its own."""
    return cast(torch.Tensor, _Gather.apply(tensor, dim, group, None, True))


def keep_own(tensor: torch.Tensor, dim: int, group: Group) -> torch.Tensor:
    """This rank's part of a tensor that every rank holds."""
    return cast(torch.Tensor, _KeepOwn.apply(tensor, dim, group))


def reduce_and_keep_own(tensor: torch.Tensor, dim: int, group: Group) -> torch.Tensor:
    """This rank's part, along `dim`, of the sum over the group."""
    return cast(torch.Tensor, _ReduceAndKeepOwn.apply(tensor, dim, group))


def exchange(tensor: torch.Tensor, cut_dim: int, join_dim: int, group: Group) -> torch.Tensor:
    """Cut `cut_dim` over the ranks and join their parts along `join_dim` (an all-to-all: DeepSpeed
    Ulysses, Jacobs et al. 2023)."""
    return cast(torch.Tensor, _Exchange.apply(tensor, cut_dim, join_dim, group))


def exchange_rows(
    rows: torch.Tensor, sent: Sequence[int], received: Sequence[int], group: Group
) -> torch.Tensor:
    """Send each rank of the group its rows and join those that come, both in the order of ranks.
    `rows` [sum(sent), ..]; `sent`, `received`: rows to and from each rank, of which any may be 0.
    Returns [sum(received), ..]."""
    return cast(torch.Tensor, _ExchangeRows.apply(rows, list(sent), list(received), group))


@dataclass(frozen=True, slots=True)
class Coming:
    """A tensor on its way from the rank before."""

    tensor: torch.Tensor
    works: list[dist.Work]

    def wait(self) -> torch.Tensor:
        """The tensor, once it is there and the own one has gone."""
        wait_all(self.works)
        return self.tensor


def pass_on(tensor: torch.Tensor, group: Group) -> Coming:
    """Send `tensor`, which must stay as it is until then, to the next rank of the group, and begin
    to receive one like it from the rank before; the last rank's next is the first. Not an autograd
    function."""
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    received = torch.empty_like(tensor)
    ways = [
        dist.P2POp(dist.isend, tensor, group=group, group_peer=(rank + 1) % ranks),
        dist.P2POp(dist.irecv, received, group=group, group_peer=(rank - 1) % ranks),
    ]
    return Coming(received, dist.batch_isend_irecv(ways))


class _CopyTo(Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, group: Group) -> torch.Tensor:
        ctx.group = group
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        return _summed(grad, ctx.group), None


class _ReduceFrom(Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, group: Group) -> torch.Tensor:
        return _summed(tensor, group)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        return grad, None


class _Gather(Function):
    @staticmethod
    def forward(
        ctx: Any,
        tensor: torch.Tensor,
        dim: int,
        group: Group,
        sizes: Sequence[int] | None,
        summing: bool,
    ) -> torch.Tensor:
        ctx.dim, ctx.group, ctx.summing = dim, group, summing
        ctx.sizes = sizes or [tensor.shape[dim]] * dist.get_world_size(group)
        return _joined(tensor, dim, group, ctx.sizes)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        if ctx.summing:
            own = _scattered_sum(grad, ctx.dim, ctx.group)
        else:
            own = grad.split(list(ctx.sizes), ctx.dim)[dist.get_rank(ctx.group)].contiguous()
        return own, None, None, None, None


class _KeepOwn(Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, dim: int, group: Group) -> torch.Tensor:
        ctx.dim, ctx.group = dim, group
        return tensor.chunk(dist.get_world_size(group), dim)[dist.get_rank(group)].contiguous()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        sizes = [grad.shape[ctx.dim]] * dist.get_world_size(ctx.group)
        return _joined(grad, ctx.dim, ctx.group, sizes), None, None


class _ReduceAndKeepOwn(Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, dim: int, group: Group) -> torch.Tensor:
        ctx.dim, ctx.group = dim, group
        return _scattered_sum(tensor, dim, group)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        sizes = [grad.shape[ctx.dim]] * dist.get_world_size(ctx.group)
        return _joined(grad, ctx.dim, ctx.group, sizes), None, None


class _Exchange(Function):
    @staticmethod
    def forward(
        ctx: Any, tensor: torch.Tensor, cut_dim: int, join_dim: int, group: Group
    ) -> torch.Tensor:
        ctx.cut_dim, ctx.join_dim, ctx.group = cut_dim, join_dim, group
        return _exchanged(tensor, cut_dim, join_dim, group)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        return _exchanged(grad, ctx.join_dim, ctx.cut_dim, ctx.group), None, None, None


class _ExchangeRows(Function):
    @staticmethod
    def forward(
        ctx: Any, rows: torch.Tensor, sent: list[int], received: list[int], group: Group
    ) -> torch.Tensor:
        ctx.sent, ctx.received, ctx.group = sent, received, group
        return _rows_exchanged(rows, sent, received, group)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[Any, ...]:
        return _rows_exchanged(grad, ctx.received, ctx.sent, ctx.group), None, None, None


def _rows_exchanged(
    rows: torch.Tensor, sent: list[int], received: list[int], group: Group
) -> torch.Tensor:
    arrived = rows.new_empty((sum(received), *rows.shape[1:]))
    dist.all_to_all_single(arrived, rows.contiguous(), received, sent, group=group)
    return arrived


def _exchanged(tensor: torch.Tensor, cut_dim: int, join_dim: int, group: Group) -> torch.Tensor:
    ranks = dist.get_world_size(group)
    sent = torch.stack(tensor.chunk(ranks, cut_dim))
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent, group=group)
    return torch.cat(list(received.unbind()), join_dim)


def _summed(tensor: torch.Tensor, group: Group) -> torch.Tensor:
    total = tensor.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group)
    return total


def _joined(tensor: torch.Tensor, dim: int, group: Group, sizes: Sequence[int]) -> torch.Tensor:
    # Along dim 0 the parts lie one behind another, which is what the collective writes.
    own = tensor.movedim(dim, 0).contiguous()
    if len(set(sizes)) == 1:
        whole = own.new_empty((sum(sizes), *own.shape[1:]))
        dist.all_gather_single(whole, own, group=group)
    else:
        parts = [own.new_empty((size, *own.shape[1:])) for size in sizes]
        # Parts of one length is all that the collective takes: short ones travel padded.
        longest = max(sizes)
        padded = own.new_zeros((longest, *own.shape[1:]))
        padded[: own.shape[0]] = own
        received = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(received, padded, group=group)
        for part, whole_part in zip(parts, received, strict=True):
            part.copy_(whole_part[: part.shape[0]])
        whole = torch.cat(parts)
    return whole.movedim(0, dim).contiguous()


def _scattered_sum(tensor: torch.Tensor, dim: int, group: Group) -> torch.Tensor:
    ranks = dist.get_world_size(group)
    whole = tensor.movedim(dim, 0).contiguous()
    own = whole.new_empty((whole.shape[0] // ranks, *whole.shape[1:]))
    dist.reduce_scatter_single(own, whole, group=group)
    return own.movedim(0, dim).contiguous()

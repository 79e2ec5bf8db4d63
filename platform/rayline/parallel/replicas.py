"""Replicas of whole weights: gradients are summed over the ranks that hold the same ones.

FSDP2 can replicate too, as a sharding into one part, but then it copies each layer's weights out
and its gradients in, and reduces layer by layer. Where nothing is sharded and nothing is cast, the
gradients of a step are a few flat buckets instead, which travel while the next one is filled
(Li et al. 2020, PyTorch Distributed, section 4.1: buckets of 25 MiB).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
import torch.distributed as dist

BUCKET_BYTES = 25 * 2**20


def sum_over_replicas(gradients: Iterable[torch.Tensor], group: dist.ProcessGroup) -> None:
    """Sum each gradient, in place, over the group. Every rank of it calls it once a step, with
    tensors of the same shapes, types and order."""
    under_way: deque[_Sent] = deque()
    for bucket in fill_buckets(gradients, BUCKET_BYTES):
        # One travels while the next is filled; more would hold all gradients twice.
        if len(under_way) > 1:
            under_way.popleft().take_home()
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        under_way.append(_Sent(bucket, flat, dist.all_reduce(flat, group=group, async_op=True)))
    for sent in under_way:
        sent.take_home()


class _Sent(NamedTuple):
    """A bucket whose sum is on its way."""

    bucket: list[torch.Tensor]
    flat: torch.Tensor
    work: dist.Work | None

    def take_home(self) -> None:
        """Wait for the sum and put it in the gradients' place."""
        if self.work is not None:
            self.work.wait()
        parts = self.flat.split([gradient.numel() for gradient in self.bucket])
        sums = [part.view_as(one) for part, one in zip(parts, self.bucket, strict=True)]
        torch._foreach_copy_(self.bucket, sums)


def fill_buckets(
    gradients: Iterable[torch.Tensor], bucket_bytes: int
) -> Iterator[list[torch.Tensor]]:
    """The gradients in order, cut into runs of one type, each of `bucket_bytes` or less where it
    holds more than one."""
    bucket: list[torch.Tensor] = []
    filled = 0
    for gradient in gradients:
        if bucket and (
            filled + gradient.nbytes > bucket_bytes or gradient.dtype != bucket[0].dtype
        ):
            yield bucket
            bucket, filled = [], 0
        bucket.append(gradient)
        filled += gradient.nbytes
    if bucket:
        yield bucket

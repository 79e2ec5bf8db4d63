"""torch.distributed for one rank: joined on the way in, left on the way out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist

from rayline.spec import WorkerContext


@contextmanager
def joined(context: WorkerContext) -> Iterator[torch.device]:
    """Meet the other ranks at the context's address; yields this rank's device.

    On a GPU both backends are up: NCCL for what lies on it, gloo for small talk on the CPU."""
    if context.device == "cuda":
        device = torch.device("cuda", context.local_rank)
        torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl"
    else:
        device = torch.device("cpu")
        backend = "gloo"
    dist.init_process_group(
        backend,
        init_method=f"tcp://{context.master_address}:{context.master_port}",
        rank=context.rank,
        world_size=context.world_size,
        timeout=timedelta(seconds=context.collective_timeout_s),
    )
    try:
        yield device
    finally:
        dist.destroy_process_group()


def any_rank(flag: bool) -> bool:
    """Whether `flag` is set on any rank; every rank calls it and gets the same answer."""
    votes = torch.tensor([int(flag)])
    dist.all_reduce(votes, op=dist.ReduceOp.MAX)
    return bool(votes.item())

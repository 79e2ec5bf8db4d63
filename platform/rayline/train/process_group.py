"""torch.distributed for one rank: joined on the way in, left on the way out.

A rank that leaves because something failed hangs up: it shuts every TCP connection that was opened
since it joined. Otherwise its neighbours, whose own connections are fine, would wait for it in
collectives until their timeout: gloo's groups have no abort (it does nothing in torch 2.13), and
DTensor's caches, which outlive the run, hold on to the groups and with them to their sockets.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.tensor.debug import _clear_sharding_prop_cache

from rayline.spec import WorkerContext

_DESCRIPTORS = "/proc/self/fd"


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
    before = _sockets()
    try:
        dist.init_process_group(
            backend,
            init_method=f"tcp://{context.master_address}:{context.master_port}",
            rank=context.rank,
            world_size=context.world_size,
            timeout=timedelta(seconds=context.collective_timeout_s),
        )
        yield device
    except BaseException:
        _hang_up(before)
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
        # Entries of dead meshes are of no use to the next run. There is no public call.
        _clear_sharding_prop_cache()


def any_rank(flag: bool) -> bool:
    """Whether `flag` is set on any rank; every rank calls it and gets the same answer."""
    votes = torch.tensor([int(flag)])
    dist.all_reduce(votes, op=dist.ReduceOp.MAX)
    return bool(votes.item())


def _sockets() -> dict[str, int]:
    """This process's sockets: what the kernel calls them, and their descriptors. Empty where the
    system has no /proc."""
    found: dict[str, int] = {}
    with suppress(FileNotFoundError):
        for name in os.listdir(_DESCRIPTORS):
            # A descriptor may be closed while the list is read.
            with suppress(OSError):
                target = os.readlink(f"{_DESCRIPTORS}/{name}")
                if target.startswith("socket:"):
                    found[target] = int(name)
    return found


def _hang_up(before: dict[str, int]) -> None:
    """Shut the TCP connections that are not among `before`; whoever holds them sees their end."""
    for name, descriptor in _sockets().items():
        if name in before:
            continue
        with suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as opened:
            listens = opened.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            if opened.family in (socket.AF_INET, socket.AF_INET6) and not listens:
                opened.shutdown(socket.SHUT_RDWR)

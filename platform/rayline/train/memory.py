"""Peak memory of this process, in bytes."""

from __future__ import annotations

import resource

import torch
import torch.distributed as dist

_KIB = 1024
"""Linux gives ru_maxrss in KiB (getrusage(2))."""


def peak_memory_bytes(device: torch.device) -> int:
    """The most that was held so far: memory allocated on the GPU, or resident memory on CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KIB


def peak_memory_of_ranks(device: torch.device) -> tuple[int, ...]:
    """Every rank's peak so far, in the order of ranks; every rank calls it and gets the same."""
    held = torch.tensor(peak_memory_bytes(device))
    gathered = [torch.empty_like(held) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, held)
    return tuple(int(each) for each in gathered)

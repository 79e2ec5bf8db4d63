"""Peak memory of this process, in bytes."""

from __future__ import annotations

import resource

import torch

_KIB = 1024
"""Linux gives ru_maxrss in KiB (getrusage(2))."""


def peak_memory_bytes(device: torch.device) -> int:
    """The most that was held so far: memory allocated on the GPU, or resident memory on CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KIB

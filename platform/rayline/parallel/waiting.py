"""Where a rank's thread waits for others outside of torch.distributed's own functions.

`Work.wait` and the copy of a number from a GPU are C++ and leave no call of their own on a stack.
So they are made here and nowhere else: whoever looks where a thread stands
(`rayline.actors.progress`) tells by the file of the innermost call whether it waits or works. A
number that is read from a GPU waits for all that was enqueued before it, the collectives among it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist


def wait_all(works: Iterable[dist.Work | None]) -> None:
    """Wait for collectives, sends and receives that are under way; None is one that is done."""
    for work in works:
        if work is not None:
            work.wait()


def to_host(tensor: torch.Tensor) -> Any:
    """The values of a small tensor as Python's numbers: one for a scalar, else a list."""
    return tensor.tolist()

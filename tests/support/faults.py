"""Faults that are planted in one rank of a gang, to see what the others make of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist

from rayline.train.engine import Engine

GRADIENT_RANK = 2
"""The rank whose gradient gets a NaN."""


def _last_stage(engine: Any) -> torch.nn.Module:
    """The last of the stages that a rank of the native engine holds."""
    *_, stage = engine._stages._stages.values()
    found: torch.nn.Module = stage
    return found


@contextmanager
def planted(engine: Engine, fault: str | None) -> Iterator[None]:
    """While it lasts: "gradient", a NaN in one element of the first gradient that rank 2 holds;
    "loss", a forward pass of the last rank that comes out as NaN."""
    known: Any = engine
    if fault == "gradient" and dist.get_rank() == GRADIENT_RANK:
        gradients = known._local_gradients

        def spoilt() -> dict[str, torch.Tensor]:
            found: dict[str, torch.Tensor] = gradients()
            next(gradient for gradient in found.values() if gradient.numel()).view(-1)[0] = float(
                "nan"
            )
            return found

        known._local_gradients = spoilt
        yield
        del known._local_gradients
    elif fault == "loss" and dist.get_rank() == dist.get_world_size() - 1:
        module = known._engine.module if hasattr(known, "_engine") else _last_stage(known)
        hook = module.register_forward_hook(lambda _, __, output: output * float("nan"))
        yield
        hook.remove()
    else:
        yield

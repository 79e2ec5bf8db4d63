"""Whole tensors on rank 0, one at a time, from shards that lie anywhere in the gang."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from rayline.parallel.mesh import GangMesh


def whole_tensors(
    named: Mapping[str, torch.Tensor], mesh: GangMesh
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, whole tensor on CPU) on rank 0 for every tensor of every stage, first stage
    first. Every rank of the gang must run through it; the others are yielded nothing. `named` holds
    this stage's tensors, in the same order on every rank of the stage."""
    rank = dist.get_rank()
    pipelines = mesh.plan.groups("pipeline")
    leaders = pipelines[0]
    for stage, leader in enumerate(leaders):
        on_stage = mesh.coordinate.pipeline == stage
        described = [[(n, tuple(t.shape), t.dtype) for n, t in named.items()] if on_stage else None]
        dist.broadcast_object_list(described, src=leader)
        for name, shape, dtype in described[0] or []:
            whole = _full(named[name]) if on_stage else None
            if rank == 0:
                if whole is None:
                    whole = torch.empty(shape, dtype=dtype)
                    dist.recv(whole, src=leader)
                yield name, whole
            elif rank == leader and whole is not None:
                dist.send(whole, dst=0)


def _full(tensor: torch.Tensor) -> torch.Tensor:
    """The whole tensor on CPU; every holder of a part takes part."""
    whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return whole.detach().cpu().contiguous()

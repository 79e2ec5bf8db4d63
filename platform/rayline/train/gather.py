"""Whole tensors on rank 0, one at a time, from shards that lie anywhere in the gang."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from rayline.parallel.layout import TensorLayout
from rayline.parallel.mesh import GangMesh


def whole_tensors(
    named: Mapping[str, torch.Tensor], mesh: GangMesh, layout: TensorLayout
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield (name, whole tensor on CPU) on rank 0 for every tensor of every stage, first stage
    first. Every rank of the gang must run through it; the others are yielded nothing. `named` holds
    this stage's tensors, in the same order on every rank of the stage."""
    rank = dist.get_rank()
    for stage, leader in enumerate(mesh.plan.groups("pipeline")[0]):
        on_stage = mesh.coordinate.pipeline == stage
        described = (
            [(n, layout.whole_shape(n, t), t.dtype) for n, t in named.items()] if on_stage else None
        )
        told = [described]
        dist.broadcast_object_list(told, src=leader)
        for name, shape, dtype in told[0] or []:
            whole = _joined(name, named[name], mesh, layout, leader) if on_stage else None
            if rank == 0:
                if whole is None:
                    whole = torch.empty(shape, dtype=dtype)
                    dist.recv(whole, src=leader)
                yield name, whole
            elif rank == leader and whole is not None:
                dist.send(whole, dst=0)


def _joined(
    name: str, tensor: torch.Tensor, mesh: GangMesh, layout: TensorLayout, leader: int
) -> torch.Tensor | None:
    """The whole tensor on CPU on the stage's leader, None elsewhere; every rank of the stage calls
    it, for each has a part."""
    part = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    part = part.detach().cpu().contiguous()
    cut, rank = layout.cuts.get(name), dist.get_rank()
    if cut is None:
        return part if rank == leader else None
    if mesh.coordinate.data or mesh.coordinate.context:
        return None
    if rank != leader:
        if cut.holders(layout.rank)[0] == layout.rank:
            dist.send(part, dst=leader)
        return None
    whole = torch.empty(layout.whole_shape(name, tensor), dtype=part.dtype)
    for other, spans in enumerate(cut.spans):
        if cut.holders(other)[0] != other:
            continue
        if other != layout.rank:
            shape = list(part.shape)
            shape[cut.dim] = cut.length(other)
            part = torch.empty(shape, dtype=part.dtype)
            dist.recv(part, src=leader + other)
        place = 0
        for begin, end in spans:
            length = end - begin
            whole.narrow(cut.dim, begin, length).copy_(part.narrow(cut.dim, place, length))
            place += length
    return whole

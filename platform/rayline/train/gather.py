"""Whole tensors on rank 0, one at a time, from shards that lie anywhere in the gang."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from rayline.parallel.cut import Cut
from rayline.parallel.layout import TensorLayout
from rayline.parallel.mesh import GangMesh
from rayline.spec import ParallelPlan


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
    sources = _sources(cut, layout.expert_ranks if name in layout.experts else 1, mesh.plan)
    if rank != leader:
        if rank - leader in sources:
            dist.send(part, dst=leader)
        return None
    if len(sources) == 1:
        return part
    whole = torch.empty(layout.whole_shape(name, tensor), dtype=part.dtype)
    for offset, (expert, other) in sources.items():
        if offset:
            shape = list(part.shape)
            if cut is not None:
                shape[cut.dim] = cut.length(other)
            part = torch.empty(shape, dtype=part.dtype)
            dist.recv(part, src=leader + offset)
        target = whole
        if name in layout.experts:
            target = whole.narrow(0, expert * part.shape[0], part.shape[0])
        _place(target, part, cut, other)
    return whole


def _sources(cut: Cut | None, experts: int, plan: ParallelPlan) -> dict[int, tuple[int, int]]:
    """Who has the parts of a tensor that the expert axis cuts into `experts`, and `cut` further:
    rank, counted from the stage's first, to its place on the expert and on the tensor axis."""
    own = [0] if cut is None else [r for r in range(plan.tensor) if cut.holders(r)[0] == r]
    return {
        expert * plan.context * plan.tensor + other: (expert, other)
        for expert in range(experts)
        for other in own
    }


def _place(whole: torch.Tensor, part: torch.Tensor, cut: Cut | None, rank: int) -> None:
    """Copy tensor rank `rank`'s part to where it belongs."""
    if cut is None:
        whole.copy_(part)
        return
    place = 0
    for begin, end in cut.spans[rank]:
        length = end - begin
        whole.narrow(cut.dim, begin, length).copy_(part.narrow(cut.dim, place, length))
        place += length

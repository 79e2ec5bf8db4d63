"""Which rectangle of a whole parameter this rank holds.

DTensor knows it, but spreads it over placements; weights and checkpoints need offsets. The rule:
tensor parallelism cuts first, FSDP2 cuts what is left (`_StridedShard` is how DTensor writes that
order down), and every cut follows torch.chunk, so the last parts may be smaller or empty.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.placement_types import Placement, Shard, _StridedShard

Rectangle = tuple[tuple[int, ...], tuple[int, ...]]
"""Offset and extent of a rectangle, along each dim."""


def local_part(parameter: torch.Tensor) -> torch.Tensor:
    """The storage on this rank, without a copy: a DTensor's local tensor, or the tensor itself."""
    detached = parameter.detach()
    return detached.to_local() if isinstance(detached, DTensor) else detached


def local_gradient(parameter: torch.Tensor) -> torch.Tensor:
    """This rank's shard of the parameter's gradient, laid out as the parameter is; zeros where the
    parameter took no part. Every rank of the parameter's mesh calls it: autograd may leave a
    DTensor gradient in another layout, still to be summed or cut."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    gradient = parameter.grad
    as_laid_out = parameter.placements if isinstance(parameter, DTensor) else None
    if isinstance(gradient, DTensor) and gradient.placements != as_laid_out:
        gradient = gradient.redistribute(placements=as_laid_out)
        parameter.grad = gradient
    return local_part(gradient)


def held_rectangle(parameter: torch.Tensor) -> Rectangle:
    """Offset and extent of `local_part(parameter)` in the whole tensor."""
    shape = tuple(parameter.shape)
    offset, extent = [0] * len(shape), list(shape)
    if isinstance(parameter, DTensor):
        coordinate = parameter.device_mesh.get_coordinate()
        if coordinate is None:
            raise ValueError("this rank is not part of the parameter's mesh")
        for axis in _cutting_order(parameter.placements):
            placement = parameter.placements[axis]
            if placement.is_replicate():
                continue
            _cut(placement, offset, extent, coordinate[axis], parameter.device_mesh.size(axis))
    return tuple(offset), tuple(extent)


def is_first_holder(parameter: torch.Tensor) -> bool:
    """True where this rank stands first along every mesh axis over which the parameter is
    replicated: one rank out of those that hold the same rectangle."""
    if not isinstance(parameter, DTensor):
        return True
    coordinate: Sequence[int] = parameter.device_mesh.get_coordinate() or ()
    return all(
        place == 0
        for place, placement in zip(coordinate, parameter.placements, strict=True)
        if placement.is_replicate()
    )


def _cutting_order(placements: tuple[Placement, ...]) -> list[int]:
    """Mesh axes in the order of their cuts: plain ones first, strided ones (which were put outside
    afterwards) on what those left."""
    return sorted(range(len(placements)), key=lambda axis: _is_strided(placements[axis]))


def _is_strided(placement: Placement) -> bool:
    return isinstance(placement, _StridedShard)


def _cut(
    placement: Placement, offset: list[int], extent: list[int], place: int, parts: int
) -> None:
    """Shrink the rectangle, in place, to part `place` of `parts` along the placement's dim."""
    if not isinstance(placement, Shard | _StridedShard):
        raise ValueError(f"a parameter is sharded or replicated, not {placement}")
    dim = placement.dim
    chunk = -(-extent[dim] // parts)
    start = min(place * chunk, extent[dim])
    offset[dim] += start
    extent[dim] = min(chunk, extent[dim] - start)

"""Which rectangles of a whole parameter this rank holds, and which rank answers for them.

Cuts follow each other. The tensor axis cuts first: a `Cut` says so in whole numbers, and the
parameter is a plain tensor of what is left. Of experts that are spread, which lie one behind
another along the first dim (the tensor axis cuts others), only the rank's own are left. FSDP2 then
cuts that along its first dim, as torch.chunk does (the last parts may be smaller or empty), and
says so in the DTensor's placements.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.placement_types import Shard

from rayline.parallel.cut import Cut, Span


@dataclass(frozen=True, slots=True)
class Held:
    """One rectangle of a whole tensor that this rank holds."""

    offset: tuple[int, ...]
    """Where it begins in the whole tensor, along each dim."""
    view: tuple[slice, ...]
    """Where it lies in this rank's storage."""

    @property
    def spans(self) -> tuple[slice, ...]:
        """The rectangle as an index into the whole tensor."""
        placed = zip(self.offset, self.view, strict=True)
        return tuple(slice(begin, begin + view.stop - view.start) for begin, view in placed)


@dataclass(frozen=True, slots=True)
class TensorLayout:
    """How the tensor axis and the experts' cut a stage, as this rank sees it."""

    rank: int
    """Place on the tensor axis."""
    cuts: Mapping[str, Cut]
    """Parameter name to its cut; what is not named is whole on every rank."""
    experts: frozenset[str] = frozenset()
    """Parameters of which each of `expert_ranks` ranks holds an equal part of the first dim."""
    expert_rank: int = 0
    """Which part this rank holds, counted from 0."""
    expert_ranks: int = 1
    first_replica: bool = True
    """Whether this rank answers for the plain tensors that it holds; what FSDP2 replicates says so
    by itself."""

    def whole_shape(self, name: str, parameter: torch.Tensor) -> tuple[int, ...]:
        """Shape of the whole parameter, of which `parameter` is this rank's part."""
        shape = list(parameter.shape)
        cut = self.cuts.get(name)
        if cut is not None:
            shape[cut.dim] = max(end for spans in cut.spans for _, end in spans)
        if name in self.experts:
            shape[0] *= self.expert_ranks
        return tuple(shape)

    def held(self, name: str, parameter: torch.Tensor) -> list[Held]:
        """The rectangles of the whole parameter in `local_part(parameter)`."""
        cut = self.cuts.get(name)
        dim, kept = _data_cut(parameter)
        begins = [0] * parameter.dim()
        extents = list(parameter.shape)
        if dim is not None:
            begins[dim], extents[dim] = kept[0], kept[1] - kept[0]
        if name in self.experts:
            begins[0] += self.expert_rank * parameter.shape[0]
        if cut is None:
            return [Held(tuple(begins), tuple(slice(0, extent) for extent in extents))]
        return [
            Held(
                tuple(whole if axis == cut.dim else begins[axis] for axis in range(len(begins))),
                tuple(
                    slice(place, place + length) if axis == cut.dim else slice(0, extents[axis])
                    for axis in range(len(begins))
                ),
            )
            for whole, place, length in _kept_spans(
                cut.spans[self.rank], kept if dim == cut.dim else (0, cut.length(self.rank))
            )
        ]

    def answers_for(self, name: str, parameter: torch.Tensor) -> bool:
        """Whether this rank is the one, out of those that hold the same, that counts and writes."""
        cut = self.cuts.get(name)
        first = self.rank == (0 if cut is None else cut.holders(self.rank)[0])
        return first and self._is_first_replica(parameter)

    def _is_first_replica(self, parameter: torch.Tensor) -> bool:
        if not isinstance(parameter, DTensor):
            return self.first_replica
        coordinate = parameter.device_mesh.get_coordinate() or ()
        return all(
            place == 0
            for place, placement in zip(coordinate, parameter.placements, strict=True)
            if placement.is_replicate()
        )


def local_part(parameter: torch.Tensor) -> torch.Tensor:
    """The storage on this rank, without a copy: a DTensor's local tensor, or the tensor itself."""
    detached = parameter.detach()
    return detached.to_local() if isinstance(detached, DTensor) else detached


def local_gradient(parameter: torch.Tensor) -> torch.Tensor:
    """This rank's shard of the parameter's gradient, laid out as the parameter is; zeros where the
    parameter took no part."""
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)
    return local_part(parameter.grad)


def _data_cut(parameter: torch.Tensor) -> tuple[int | None, Span]:
    """The dim that FSDP2 cuts and the range of it that this rank holds; None where it cuts none."""
    if not isinstance(parameter, DTensor):
        return None, (0, 0)
    coordinate = parameter.device_mesh.get_coordinate()
    if coordinate is None:
        raise ValueError("this rank is not part of the parameter's mesh")
    for axis, placement in enumerate(parameter.placements):
        if isinstance(placement, Shard):
            size, parts = parameter.shape[placement.dim], parameter.device_mesh.size(axis)
            chunk = -(-size // parts)
            begin = min(coordinate[axis] * chunk, size)
            return placement.dim, (begin, min(begin + chunk, size))
    return None, (0, 0)


def _kept_spans(spans: tuple[Span, ...], kept: Span) -> list[tuple[int, int, int]]:
    """What of `spans`, laid one behind another, lies in the range `kept` of them: begin in the
    whole dim, place in what is kept, length."""
    found = []
    passed = 0
    for begin, end in spans:
        first, last = max(passed, kept[0]), min(passed + end - begin, kept[1])
        if first < last or end == begin:
            found.append((begin + first - passed, first - kept[0], max(0, last - first)))
        passed += end - begin
    # A rank without a share still has a (void) rectangle, so that every rank names every tensor.
    return found or [(spans[0][0], 0, 0)]

"""The native engine's parameters as an optimizer sees them: rectangles, and who shares a stage."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch.distributed as dist
from torch import nn

from rayline.parallel.layout import TensorLayout, local_part
from rayline.parallel.mesh import GangMesh
from rayline.train.shards import Holding, Shards
from rayline.train.tied import TiedCopies


def native_shards(
    parameters: Mapping[str, nn.Parameter], layout: TensorLayout, tied: TiedCopies, mesh: GangMesh
) -> Shards:
    """Every rank calls it: the groups of all stages are made by all ranks together."""
    holdings = {
        name: Holding(
            local=local_part(parameter),
            shape=layout.whole_shape(name, parameter),
            rectangles=tuple(layout.held(name, parameter)),
            counts=layout.answers_for(name, parameter),
            ruled_as=tied.originals.get(name) if name in tied.copied_names else None,
        )
        for name, parameter in parameters.items()
    }
    return Shards(holdings, _stage_ranks(mesh))


def _stage_ranks(mesh: GangMesh) -> dist.ProcessGroup | None:
    plan = mesh.plan
    size = plan.world_size // plan.pipeline
    if size == 1:
        return None
    # Pipeline is the outermost axis, so those that hold the same stages are a run of ranks.
    groups = [
        dist.new_group(range(first, first + size)) for first in range(0, plan.world_size, size)
    ]
    return groups[mesh.coordinate.pipeline]


def all_names(names: Iterable[str]) -> set[str]:
    """The parameter names of all stages; every rank calls it with its own."""
    everywhere: list[list[str]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(everywhere, list(names))
    return {name for some in everywhere for name in some}

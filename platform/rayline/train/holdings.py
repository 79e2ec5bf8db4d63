"""The native engine's parameters as an optimizer sees them: rectangles, and who shares a stage."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist
from torch import nn

from rayline.parallel.layout import held_rectangle, is_first_holder, local_part
from rayline.parallel.mesh import GangMesh
from rayline.train.shards import Holding, Shards
from rayline.train.tied import TiedCopies


def native_shards(
    parameters: Mapping[str, nn.Parameter], tied: TiedCopies, mesh: GangMesh
) -> Shards:
    """Every rank calls it: the groups of all stages are made by all ranks together."""
    holdings = {
        name: Holding(
            local=local_part(parameter),
            shape=tuple(parameter.shape),
            offset=held_rectangle(parameter)[0],
            counts=counts_on_stage(parameter, mesh),
            ruled_as=tied.originals.get(name) if name in tied.copied_names else None,
        )
        for name, parameter in parameters.items()
    }
    return Shards(holdings, _stage_ranks(mesh))


def counts_on_stage(parameter: torch.Tensor, mesh: GangMesh) -> bool:
    """Whether this rank is the first of those of its stage that hold its rectangle."""
    axes = getattr(getattr(parameter, "device_mesh", None), "mesh_dim_names", ())
    return is_first_holder(parameter) and ("tensor" in axes or mesh.coordinate.tensor == 0)


def _stage_ranks(mesh: GangMesh) -> dist.ProcessGroup | None:
    plan = mesh.plan
    size = plan.world_size // plan.pipeline
    if size == 1:
        return None
    # Pipeline is the outermost axis, so a stage is a run of ranks.
    groups = [
        dist.new_group(range(first, first + size)) for first in range(0, plan.world_size, size)
    ]
    return groups[mesh.coordinate.pipeline]


def all_names(names: Iterable[str]) -> set[str]:
    """The parameter names of all stages; every rank calls it with its own."""
    everywhere: list[list[str]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(everywhere, list(names))
    return {name for some in everywhere for name in some}

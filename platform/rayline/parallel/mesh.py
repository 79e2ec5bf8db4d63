"""The device mesh: the plan's axes as named process groups.

The data axis appears as two mesh axes, `replicate` outside and `shard` inside. ZeRO stages 1 to 3
shard over all of it; stage 0 replicates over all of it. That is FSDP2's hybrid-sharding mesh, so
each stage is a shape of the same mesh and not a code path of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from rayline.spec import Coordinate, ParallelPlan

MESH_AXES = ("pipeline", "replicate", "shard", "tensor")
"""Outermost first; the same order of ranks as in `rayline.spec.plan`."""


@dataclass(frozen=True, slots=True)
class GangMesh:
    """One rank's view of the gang: where it stands and the groups it belongs to."""

    plan: ParallelPlan
    coordinate: Coordinate
    device_mesh: DeviceMesh

    @property
    def tensor(self) -> DeviceMesh:
        """Mesh of this rank's tensor group."""
        return self.device_mesh["tensor"]

    @property
    def data(self) -> DeviceMesh:
        """Mesh that FSDP2 shards (and, with two dims, replicates) over."""
        if self.plan.zero_stage == 0:
            return self.device_mesh["replicate", "shard"]
        return self.device_mesh["shard"]

    @property
    def pipeline_group(self) -> dist.ProcessGroup:
        """The ranks of this rank's pipeline, in the order of their first stages."""
        return self.device_mesh["pipeline"].get_group()

    @property
    def is_first_stage(self) -> bool:
        """Whether this rank holds the embedding."""
        return self.coordinate.pipeline == self.plan.worker_of_stage(0)

    @property
    def is_last_stage(self) -> bool:
        """Whether this rank holds the head."""
        return self.coordinate.pipeline == self.plan.worker_of_stage(self.plan.stages - 1)


def build_mesh(plan: ParallelPlan, rank: int, device_type: str) -> GangMesh:
    """Make the mesh's groups. Every rank calls it, once, after torch.distributed is set up.
    `device_type` is "cpu" or "cuda"."""
    replicate, shard = (plan.data, 1) if plan.zero_stage == 0 else (1, plan.data)
    sizes = (plan.pipeline, replicate, shard, plan.tensor)
    mesh = init_device_mesh(device_type, sizes, mesh_dim_names=MESH_AXES)
    return GangMesh(plan=plan, coordinate=plan.coordinate(rank), device_mesh=mesh)

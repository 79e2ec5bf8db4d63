"""The device mesh: the plan's axes as named process groups.

The data axis appears as two mesh axes, `replicate` outside and `shard` inside. ZeRO stages 1 to 3
shard over all of it, or over the part that plan.replicate leaves; stage 0 replicates over all of
it. That is FSDP2's hybrid-sharding mesh, so each stage is a shape of the same mesh and not a code
path of its own; only replicas in fp32, where nothing is sharded or cast, do without FSDP2 (see
`rayline.parallel.replicas`). To FSDP2 the context axis is more of the same: its ranks hold the same
weights and see other tokens.

Experts that are spread lie on a mesh of their own: `expert` neighbours of the data axis have one
set of them between them, and only ranks at the same place of their set hold the same experts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from rayline.parallel.sequence import SequencePart
from rayline.spec import Coordinate, ParallelPlan

MESH_AXES = ("pipeline", "replicate", "shard", "tensor")
"""Outermost first; the same order of ranks as in `rayline.spec.plan`."""


@dataclass(frozen=True, slots=True)
class GangMesh:
    """One rank's view of the gang: where it stands and the groups it belongs to."""

    plan: ParallelPlan
    coordinate: Coordinate
    device_mesh: DeviceMesh

    context_group: dist.ProcessGroup | None
    """The ranks that hold this rank's sequences with it, in the order of their parts; None where
    each holds whole ones."""

    expert_mesh: DeviceMesh | None
    """Axes expert, replicate and shard behind all others; None where each rank holds all experts
    of its layers."""

    @property
    def experts_data(self) -> DeviceMesh:
        """Mesh of the ranks that hold the same experts, for FSDP2, in the shape of `data`. Raises
        ValueError where experts are not spread."""
        return _fsdp_mesh(self._spread, self.plan)

    @property
    def expert_group(self) -> dist.ProcessGroup:
        """The ranks that have one set of experts between them, in the order of their parts. Raises
        ValueError where experts are not spread."""
        return self._spread["expert"].get_group()

    @property
    def _spread(self) -> DeviceMesh:
        if self.expert_mesh is None:
            raise ValueError("the plan spreads no experts")
        return self.expert_mesh

    @property
    def context_part(self) -> SequencePart:
        """Which tokens of each sequence this rank holds."""
        plan = self.plan
        return SequencePart(plan.context_method, plan.context, self.coordinate.context)

    @property
    def data(self) -> DeviceMesh:
        """Mesh that FSDP2 shards (and, with two dims, replicates) over."""
        return _fsdp_mesh(self.device_mesh, self.plan)

    @property
    def replica_group(self) -> dist.ProcessGroup:
        """The ranks over which whole weights are repeated, where no stage is sharded."""
        return self.device_mesh["replicate"].get_group()

    @property
    def tensor_group(self) -> dist.ProcessGroup:
        """The ranks that split this rank's layers, in the order of their parts."""
        return self.device_mesh["tensor"].get_group()

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


def _fsdp_mesh(mesh: DeviceMesh, plan: ParallelPlan) -> DeviceMesh:
    if mesh["replicate"].size() > 1 or plan.zero_stage == 0:
        return mesh["replicate", "shard"]
    return mesh["shard"]


def sharing_group(plan: ParallelPlan, rank: int, sharing: int) -> dist.ProcessGroup | None:
    """The `sharing` neighbours of a tensor group, this rank among them, that hold the same
    key-value head. Every rank calls it with the same number; None where each has its own."""
    if sharing == 1:
        return None
    mine = None
    for tensor_group in plan.groups("tensor"):
        for begin in range(0, plan.tensor, sharing):
            ranks = tensor_group[begin : begin + sharing]
            group = dist.new_group(list(ranks))
            if rank in ranks:
                mine = group
    return mine


def build_mesh(plan: ParallelPlan, rank: int, device_type: str) -> GangMesh:
    """Make the mesh's groups. Every rank calls it, once, after torch.distributed is set up.
    `device_type` is "cpu" or "cuda"."""
    holders = plan.data * plan.context
    replicate = holders if plan.zero_stage == 0 else plan.replicate
    sizes = (plan.pipeline, replicate, holders // replicate, plan.tensor)
    mesh = init_device_mesh(device_type, sizes, mesh_dim_names=MESH_AXES)
    return GangMesh(
        plan=plan,
        coordinate=plan.coordinate(rank),
        device_mesh=mesh,
        context_group=_context_group(plan, rank),
        expert_mesh=_expert_mesh(plan, device_type),
    )


def _expert_mesh(plan: ParallelPlan, device_type: str) -> DeviceMesh | None:
    if plan.expert == 1:
        return None
    copies = plan.data // plan.expert
    holders = copies * plan.context
    ranks = torch.arange(plan.world_size).view(
        plan.pipeline, copies, plan.expert, plan.context, plan.tensor
    )
    replicate = holders if plan.zero_stage == 0 else plan.replicate
    sizes = (-1, plan.expert, replicate, holders // replicate)
    return DeviceMesh(
        device_type,
        ranks.permute(0, 4, 2, 1, 3).reshape(sizes),
        mesh_dim_names=("apart", "expert", "replicate", "shard"),
    )


def _context_group(plan: ParallelPlan, rank: int) -> dist.ProcessGroup | None:
    if plan.context == 1:
        return None
    mine = None
    for ranks in plan.groups("context"):
        group = dist.new_group(list(ranks))
        if rank in ranks:
            mine = group
    return mine

"""The data axis and mixed precision: FSDP2, one group of parameters for each layer.

ZeRO stages in FSDP2's terms (Rajbhandari et al. 2020; torch.distributed.fsdp.fully_shard): stage 3
frees the gathered weights after each layer's forward; 2 keeps them until the step but reduces
gradients at every microbatch; 1 keeps whole gradients until the last microbatch; 0 replicates.
Gradients are summed, never averaged: the division by the number of target tokens happens once, in
the engine.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from rayline.spec import ParallelPlan


def split_over_data_axis(
    root: nn.Module,
    layers: Iterable[nn.Module],
    mesh: DeviceMesh,
    plan: ParallelPlan,
    compute_dtype: torch.dtype,
) -> None:
    """Shard `layers` one by one and the rest with `root`, in place; every data rank calls it.

    `compute_dtype` is what forward and backward run in; parameters, reductions and optimizer
    states stay float32.
    """
    policy = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32)
    for module in (*layers, root):
        _shard(module, mesh, plan, policy)


def split_experts_over_data_axis(
    experts: Iterable[nn.Module], mesh: DeviceMesh, plan: ParallelPlan, compute_dtype: torch.dtype
) -> None:
    """Shard modules of experts, in place, over the ranks of `mesh`, which hold the same ones; call
    it before `split_over_data_axis`, which leaves alone what is sharded already."""
    # What the experts are called with comes from their layer, in the types that it computes with.
    policy = MixedPrecisionPolicy(
        param_dtype=compute_dtype, reduce_dtype=torch.float32, cast_forward_inputs=False
    )
    for module in experts:
        _shard(module, mesh, plan, policy)


def _shard(
    module: nn.Module, mesh: DeviceMesh, plan: ParallelPlan, policy: MixedPrecisionPolicy
) -> None:
    # A split backward pass looks for the very weights that the forward pass used.
    reshard = plan.zero_stage == 3 and not plan.splits_backward
    sharded = fully_shard(module, mesh=mesh, mp_policy=policy, reshard_after_forward=reshard)
    # A factor of one is a plain sum; forcing the sum keeps to reductions that gloo has.
    sharded.set_gradient_divide_factor(1.0)
    sharded.set_force_sum_reduction_for_comms(True)


def choose_reduction(root: nn.Module, plan: ParallelPlan, microbatch: int) -> None:
    """Let the next backward pass reduce gradients over the data axis, or keep them whole. Called
    before each microbatch (counted from 0) of a step; a root that is not sharded has nothing to
    choose."""
    if isinstance(root, FSDPModule):
        root.set_requires_gradient_sync(reduces_gradients(plan, microbatch))


def reduces_gradients(plan: ParallelPlan, microbatch: int) -> bool:
    """Whether gradients are reduced after this microbatch (counted from 0) of a step."""
    return plan.zero_stage >= 2 or microbatch == plan.microbatches - 1

"""The pipeline axis: which layers a stage holds, and torch's schedules over a worker's stages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
    ScheduleZBVZeroBubble,
)
from torch.distributed.pipelining.schedules import PipelineScheduleMulti, PipelineScheduleSingle

from rayline.parallel.mesh import GangMesh
from rayline.parallel.replicas import Replicas, summing

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
TorchSchedule = PipelineScheduleSingle | PipelineScheduleMulti


@dataclass(frozen=True, slots=True)
class StageLayers:
    """The consecutive layers of one stage: from `first` up to, not including, `end`."""

    first: int
    end: int
    is_first_stage: bool
    is_last_stage: bool

    @property
    def count(self) -> int:
        """Layers of the stage."""
        return self.end - self.first


def split_layers(counts: Sequence[int], stage: int) -> StageLayers:
    """Layers of stage number `stage`, where `counts` are those of every stage (see
    `ParallelPlan.stage_layers`)."""
    first = sum(counts[:stage])
    return StageLayers(first, first + counts[stage], stage == 0, stage == len(counts) - 1)


@dataclass(frozen=True, slots=True)
class StageShapes:
    """What passes between stages for one microbatch; fixed, so that nothing is negotiated."""

    sequences: int
    sequence_tokens: int
    hidden: int
    vocab: int
    """Logits of a token that one rank holds."""
    dtype: torch.dtype
    """Type of the hidden states on the wire."""
    sequence_parts: int = 1
    """Ranks that hold parts of each sequence between the blocks of a layer."""
    loss_in_stage: bool = False
    """Whether the last stage makes a loss in place of logits."""

    def hidden_states(self, sequences: int, tokens: int) -> tuple[int, int, int]:
        """Shape of what one rank hands to the next stage."""
        return (sequences, tokens // self.sequence_parts, self.hidden)


def build_schedule(
    stages: Mapping[int, nn.Module],
    mesh: GangMesh,
    shapes: StageShapes,
    device: torch.device,
    loss: Loss,
    replicas: Replicas | None = None,
) -> TorchSchedule:
    """torch's schedule for this rank's stages, by number. Every rank of the pipeline calls it.
    `loss` maps (what the last stage makes, labels) to the sum over a microbatch's target tokens.
    `replicas` sums the stages' gradients in the last backward pass of each."""
    tokens = (shapes.sequences, shapes.sequence_tokens)
    ids = torch.empty(tokens, dtype=torch.int64, device="meta")
    hidden = torch.empty(shapes.hidden_states(*tokens), dtype=shapes.dtype, device="meta")
    last = torch.empty((*tokens, shapes.vocab), dtype=shapes.dtype, device="meta")
    if shapes.loss_in_stage:
        last = torch.empty((), dtype=torch.float32, device="meta")
    hidden.requires_grad_()
    last.requires_grad_()
    count = mesh.plan.stages
    held = [
        _Stage(
            stage,
            stage_index=number,
            num_stages=count,
            device=device,
            input_args=ids if number == 0 else hidden,
            output_args=last if number == count - 1 else hidden,
            group=mesh.pipeline_group,
        )
        for number, stage in stages.items()
    ]
    for one in held:
        one.replicas = replicas
    return schedule_over(held, mesh.plan.schedule, mesh.plan.microbatches, loss)


def schedule_over(
    stages: Sequence[PipelineStage], schedule: str, microbatches: int, loss: Loss
) -> TorchSchedule:
    """torch's schedule of that name (see `rayline.spec.Schedule`) over the stages of one rank,
    first to last."""
    # scale_grads=False: the loss is a sum, and the engine divides once.
    if schedule in _OF_ONE_STAGE:
        (stage,) = stages
        return _OF_ONE_STAGE[schedule](stage, microbatches, loss_fn=loss, scale_grads=False)
    kind = _OF_SEVERAL_STAGES[schedule]
    return kind([*stages], microbatches, loss_fn=loss, scale_grads=False)


_OF_ONE_STAGE: dict[str, type[Schedule1F1B] | type[ScheduleGPipe]] = {
    "gpipe": ScheduleGPipe,
    "1f1b": Schedule1F1B,
}
_OF_SEVERAL_STAGES: dict[
    str,
    type[ScheduleInterleaved1F1B]
    | type[ScheduleInterleavedZeroBubble]
    | type[ScheduleZBVZeroBubble],
] = {
    "interleaved": ScheduleInterleaved1F1B,
    "zero_bubble": ScheduleInterleavedZeroBubble,
    "zero_bubble_v": ScheduleZBVZeroBubble,
}


class _Stage(PipelineStage):
    """torch's stage, whose gradients are summed over replicas in its last backward pass, and which
    adds up the weights' gradients of a split one in the type that they are reduced in.

    The split pass puts gradients beside the weights without autograd's hooks, in which FSDP2 would
    have done that; in bfloat16 the sum over microbatches would lose its low bits. FSDP2 has no
    public way to ask for it."""

    replicas: Replicas | None = None

    def backward_one_chunk(
        self,
        bwd_chunk_id: int,
        loss: torch.Tensor | None = None,
        full_backward: bool = True,
        last_backward: bool = False,
    ) -> None:
        """Compute one microbatch's gradients, or those of the inputs alone; called by the
        schedule, for which the latter are never a step's last."""
        with summing(self.replicas, self.stage_index, last=last_backward):
            super().backward_one_chunk(bwd_chunk_id, loss, full_backward, last_backward)

    def backward_weight_one_chunk(self, bwd_chunk_id: int, last_backward: bool = False) -> None:
        """Compute one microbatch's gradients of the weights; called by the schedule."""
        with summing(self.replicas, self.stage_index, last=last_backward):
            super().backward_weight_one_chunk(bwd_chunk_id, last_backward=last_backward)
        for module in self.submod.modules():
            if isinstance(module, FSDPModule):
                for group in module._get_fsdp_state()._fsdp_param_groups:
                    for parameter in group.fsdp_params:
                        parameter.accumulate_unsharded_grad_if_needed()
                        parameter.to_accumulated_grad_if_needed()

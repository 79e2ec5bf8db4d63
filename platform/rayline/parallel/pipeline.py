"""The pipeline axis: which layers a stage holds, and torch's schedules over the stages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.distributed.pipelining.schedules import PipelineScheduleSingle

from rayline.parallel.mesh import GangMesh

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


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


def split_layers(layers: int, stages: int, stage: int) -> StageLayers:
    """Layers of stage number `stage`: as even as it goes. What is left over goes to the stages in
    the middle first, for the ends also hold the embedding and the head."""
    share, over = divmod(layers, stages)
    by_distance_from_ends = sorted(range(stages), key=lambda s: (-min(s, stages - 1 - s), s))
    larger = set(by_distance_from_ends[:over])
    counts = [share + (s in larger) for s in range(stages)]
    first = sum(counts[:stage])
    return StageLayers(first, first + counts[stage], stage == 0, stage == stages - 1)


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

    def hidden_states(self, sequences: int, tokens: int) -> tuple[int, int, int]:
        """Shape of what one rank hands to the next stage."""
        return (sequences, tokens // self.sequence_parts, self.hidden)


def build_schedule(
    stage: nn.Module, mesh: GangMesh, shapes: StageShapes, device: torch.device, loss: Loss
) -> PipelineScheduleSingle:
    """torch's schedule for this rank's stage. Every rank of the pipeline calls it. `loss` maps
    (logits, labels) to the sum over a microbatch's target tokens."""
    tokens = (shapes.sequences, shapes.sequence_tokens)
    ids = torch.empty(tokens, dtype=torch.int64, device="meta")
    hidden = torch.empty(shapes.hidden_states(*tokens), dtype=shapes.dtype, device="meta")
    logits = torch.empty((*tokens, shapes.vocab), dtype=shapes.dtype, device="meta")
    hidden.requires_grad_()
    logits.requires_grad_()
    pipeline_stage = PipelineStage(
        stage,
        stage_index=mesh.coordinate.pipeline,
        num_stages=mesh.plan.pipeline,
        device=device,
        input_args=ids if mesh.is_first_stage else hidden,
        output_args=logits if mesh.is_last_stage else hidden,
        group=mesh.pipeline_group,
    )
    kind = {"1f1b": Schedule1F1B, "gpipe": ScheduleGPipe}[mesh.plan.schedule]
    # scale_grads=False: the loss is a sum, and the engine divides once.
    return kind(pipeline_stage, mesh.plan.microbatches, loss_fn=loss, scale_grads=False)


def relay_forward(
    stage: nn.Module, mesh: GangMesh, shapes: StageShapes, input_ids: torch.Tensor
) -> torch.Tensor | None:
    """One forward pass through all stages without a schedule; every rank of the pipeline calls it.
    Returns the logits on the last stage, None on the others. `input_ids`: int64 [sequences,
    tokens] of any size, the same on every rank."""
    group, place = mesh.pipeline_group, mesh.coordinate.pipeline
    if mesh.is_first_stage:
        received = input_ids
    else:
        sequences, tokens = input_ids.shape
        wire = shapes.hidden_states(sequences, tokens)
        received = torch.empty(wire, dtype=shapes.dtype, device=input_ids.device)
        dist.recv(received, group=group, group_src=place - 1)
    with torch.no_grad():
        output: torch.Tensor = stage(received)
    if mesh.is_last_stage:
        return output
    dist.send(output.contiguous(), group=group, group_dst=place + 1)
    return None

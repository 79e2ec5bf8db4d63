"""A forward pass through all stages without a schedule: what an export is checked with."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import nn

from rayline.parallel.mesh import GangMesh
from rayline.parallel.pipeline import StageShapes


def relay_forward(
    stages: Mapping[int, nn.Module],
    mesh: GangMesh,
    shapes: StageShapes,
    input_ids: torch.Tensor,
    positions: torch.Tensor | None = None,
    labels: torch.Tensor | None = None,
) -> torch.Tensor | None:
    """One forward pass through all stages; every rank of the pipeline calls it with its own, by
    number, first to last. Returns what the rank of the last stage has of the logits, None on the
    others; with `labels`, for a last stage that makes a loss of them, the loss. `input_ids`, and
    `labels` like them: int64 [sequences, tokens] of any size, this rank's part of the sequences;
    `positions`: see `rayline.models.stage.ModelStage.forward`."""
    group, place, plan = mesh.pipeline_group, mesh.coordinate.pipeline, mesh.plan
    output = input_ids
    for number, stage in stages.items():
        before = plan.worker_of_stage(number - 1) if number else place
        if before != place:
            sequences, tokens = input_ids.shape
            wire = shapes.hidden_states(sequences, tokens)
            output = torch.empty(wire, dtype=shapes.dtype, device=input_ids.device)
            dist.recv(output, group=group, group_src=before)
        with torch.no_grad():
            output = stage(output, positions, labels)
        if number == plan.stages - 1:
            return output
        after = plan.worker_of_stage(number + 1)
        if after != place:
            dist.send(output.contiguous(), group=group, group_dst=after)
    return None

"""The stages of the model that one rank holds, run as one: by the plan's schedule, or plainly where
the pipeline has one stage only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import nn
from transformers import PretrainedConfig

from rayline.models.stage import ModelStage
from rayline.parallel.data import choose_reduction
from rayline.parallel.mesh import GangMesh
from rayline.parallel.pipeline import StageShapes, build_schedule
from rayline.parallel.relay import relay_forward
from rayline.spec import JobSpec
from rayline.train.objective import summed_cross_entropy

COMPUTE_DTYPE = {"fp32": torch.float32, "bf16": torch.bfloat16}
"""What forward and backward run in, and what goes from stage to stage."""


class WorkerStages:
    """One rank's stages, by number, first to last."""

    def __init__(
        self, job: JobSpec, mesh: GangMesh, stages: Mapping[int, ModelStage], device: torch.device
    ) -> None:
        self._plan = job.plan
        self._mesh = mesh
        self._stages = stages
        config = self.config
        self.shapes = StageShapes(
            sequences=job.sequences_per_microbatch,
            sequence_tokens=job.data.sequence_tokens,
            hidden=config.hidden_size,
            vocab=config.vocab_size,
            dtype=COMPUTE_DTYPE[job.precision],
        )
        self._schedule = (
            build_schedule(stages, mesh, self.shapes, device, summed_cross_entropy)
            if job.plan.pipeline > 1
            else None
        )

    @property
    def config(self) -> PretrainedConfig:
        """Config of a stage's model; its sizes are the whole model's, its layers the stage's."""
        return next(iter(self._stages.values())).model.config

    @property
    def tied(self) -> dict[str, str]:
        """Parameters that share another one's weights; see `ModelStage.tied`."""
        return next(iter(self._stages.values())).tied

    def parameters_by_whole_name(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Each parameter of each stage once, by its name in the whole model."""
        for stage in self._stages.values():
            yield from stage.parameters_by_whole_name()

    def forward_backward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> list[torch.Tensor]:
        """Forward and backward of a step's microbatches; gradients are added to those that are
        there. Every rank of the pipeline calls it with the whole of its data rank's share, int64
        [sequences, tokens]. Returns each microbatch's loss, a sum over its target tokens; none on
        a rank that does not hold the last stage."""
        for stage in self._stages.values():
            stage.train()
        if self._schedule is None:
            return self._accumulate(input_ids, labels)
        losses: list[torch.Tensor] = []
        args = (input_ids,) if self._mesh.is_first_stage else ()
        target = labels if self._mesh.is_last_stage else None
        self._schedule.step(*args, target=target, losses=losses, return_outputs=False)
        return losses

    def _accumulate(self, input_ids: torch.Tensor, labels: torch.Tensor) -> list[torch.Tensor]:
        """Microbatch after microbatch on a pipeline of one stage."""
        (stage,) = self._stages.values()
        parts = self._plan.microbatches
        losses = []
        for number, (ids, targets) in enumerate(
            zip(input_ids.chunk(parts), labels.chunk(parts), strict=True)
        ):
            choose_reduction(stage, self._plan, number)
            loss = summed_cross_entropy(stage(ids), targets)
            loss.backward()
            losses.append(loss)
        return losses

    def logits(self, input_ids: torch.Tensor) -> torch.Tensor | None:
        """Logits on the rank of the last stage, through all stages without a schedule; see
        `relay_forward`."""
        for stage in self._stages.values():
            stage.eval()
        return relay_forward(self._stages, self._mesh, self.shapes, input_ids)

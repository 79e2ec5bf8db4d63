"""The stages of the model that one rank holds, run as one: by the plan's schedule, or plainly where
the pipeline has one stage only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from transformers import PretrainedConfig

from rayline.models.stage import HeadLoss, ModelStage
from rayline.parallel.collectives import gather
from rayline.parallel.cut import even_cut
from rayline.parallel.data import choose_reduction
from rayline.parallel.mesh import GangMesh
from rayline.parallel.pipeline import StageShapes, TorchSchedule, build_schedule
from rayline.parallel.relay import relay_forward
from rayline.parallel.replicas import Replicas, summing
from rayline.parallel.vocabulary import VocabularySlice
from rayline.spec import JobSpec
from rayline.train.objective import PLAIN, summed_cross_entropy

COMPUTE_DTYPE = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
"""What forward and backward run in, and what goes from stage to stage."""


class WorkerStages:
    """One rank's stages, by number, first to last."""

    def __init__(
        self,
        job: JobSpec,
        mesh: GangMesh,
        stages: Mapping[int, ModelStage],
        vocabulary: VocabularySlice | None,
        device: torch.device,
        replicas: Replicas | None = None,
    ) -> None:
        """`vocabulary`: the logits that this rank makes; None without the last stage. `replicas`:
        what sums gradients over ranks with the same whole weights; None where there are none."""
        plan = job.plan
        self._plan = plan
        self._mesh = mesh
        self._stages = stages
        self._vocabulary = vocabulary
        self._objective = job.objective
        self._device = device
        self._replicas = replicas
        self._shapes = StageShapes(
            sequences=job.sequences_per_microbatch,
            sequence_tokens=job.data.sequence_tokens // plan.context,
            hidden=self.config.hidden_size,
            vocab=vocabulary.size if vocabulary else self.config.vocab_size,
            dtype=COMPUTE_DTYPE[job.precision],
            sequence_parts=plan.tensor if plan.sequence else 1,
            loss_in_stage=job.objective.chunk_tokens is not None,
        )
        self._multiplier = 1.0
        self._schedules: dict[int, TorchSchedule] = {}

    @property
    def _own_vocabulary(self) -> VocabularySlice:
        if self._vocabulary is None:
            raise RuntimeError("this rank makes no logits")
        return self._vocabulary

    def _training_loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The job's objective over a microbatch's target tokens, times the multiplier."""
        loss = summed_cross_entropy(logits, labels, self._own_vocabulary, self._objective)
        return loss if self._multiplier == 1.0 else loss * self._multiplier

    def _plain_loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The cross-entropy alone, over target tokens."""
        return summed_cross_entropy(logits, labels, self._own_vocabulary, PLAIN)

    def _prepare(self, *, training: bool) -> None:
        """Let the stages train or evaluate; the last one by the loss that belongs to it."""
        for stage in self._stages.values():
            stage.train(training)
            if self._objective.chunk_tokens is not None:
                loss = self._training_loss if training else self._plain_loss
                stage.head_loss = HeadLoss(loss, self._objective.chunk_tokens)

    def _schedule_of(self, sequences: int) -> TorchSchedule:
        """The schedule for microbatches of so many sequences: its shapes are fixed, and a batch
        that grows takes another one at each rise."""
        if sequences not in self._schedules:
            shapes = replace(self._shapes, sequences=sequences)
            loss = _already_a_loss if shapes.loss_in_stage else self._training_loss
            self._schedules[sequences] = build_schedule(
                self._stages, self._mesh, shapes, self._device, loss, self._replicas
            )
        return self._schedules[sequences]

    @property
    def by_number(self) -> Mapping[int, ModelStage]:
        """The stages by their number in the pipeline."""
        return self._stages

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

    def own_tokens(self, whole: torch.Tensor) -> torch.Tensor:
        """The part of each sequence that this rank holds, on its device; `whole` [sequences,
        tokens]."""
        spans = self._mesh.context_part.spans(whole.shape[1] // self._plan.context)
        parts = [whole[:, begin:end] for begin, end in spans]
        return torch.cat(parts, 1).to(self._device)

    def forward_backward(
        self,
        input_ids: torch.Tensor,
        labels: torch.Tensor,
        positions: torch.Tensor | None = None,
        multiplier: float = 1.0,
    ) -> list[torch.Tensor]:
        """Forward and backward of a step's microbatches; gradients are added to those that are
        there. Every rank of the pipeline calls it with its part of its data rank's share, int64
        [sequences, own tokens]; `positions`, where documents are packed, are those of the whole
        sequences. Returns each microbatch's loss, a sum over its target tokens times
        `multiplier`, as the gradients are; none on a rank that does not hold the last stage."""
        self._multiplier = multiplier
        self._prepare(training=True)
        if self._plan.pipeline == 1:
            return self._accumulate(input_ids, labels, positions)
        losses: list[torch.Tensor] = []
        args = (input_ids,) if self._mesh.is_first_stage else ()
        target = labels if self._mesh.is_last_stage else None
        # Every stage of a worker gets them; only the last one has a use for them.
        to_stages: dict[str, Any] = {}
        if self._shapes.loss_in_stage and target is not None:
            to_stages["labels"] = labels
        schedule = self._schedule_of(len(input_ids) // self._plan.microbatches)
        if positions is not None:
            # Every stage gets them from its own rank: they are no part of what stages hand on.
            to_stages["positions"] = positions
        schedule.step(*args, target=target, losses=losses, return_outputs=False, **to_stages)
        return losses

    def _accumulate(
        self, input_ids: torch.Tensor, labels: torch.Tensor, positions: torch.Tensor | None
    ) -> list[torch.Tensor]:
        """Microbatch after microbatch on a pipeline of one stage."""
        ((stage_number, stage),) = self._stages.items()
        parts = self._plan.microbatches
        losses = []
        places: Sequence[torch.Tensor | None] = [None] * parts
        if positions is not None:
            places = positions.chunk(parts)
        for number, (ids, targets, place) in enumerate(
            zip(input_ids.chunk(parts), labels.chunk(parts), places, strict=True)
        ):
            choose_reduction(stage, self._plan, number)
            if self._shapes.loss_in_stage:
                loss = stage(ids, place, targets)
            else:
                loss = self._training_loss(stage(ids, place), targets)
            with summing(self._replicas, stage_number, last=number == parts - 1):
                loss.backward()
            losses.append(loss)
        return losses

    def loss(
        self,
        input_ids: torch.Tensor,
        labels: torch.Tensor,
        positions: torch.Tensor | None = None,
    ) -> torch.Tensor | None:
        """Sum of the plain cross-entropy over the target tokens, without gradients, on the ranks of
        the last stage; None on the others. Every rank of the pipeline calls it with its part of the
        sequences, and with the positions of the whole ones where documents are packed."""
        self._prepare(training=False)
        told = labels if self._shapes.loss_in_stage else None
        made = relay_forward(self._stages, self._mesh, self._shapes, input_ids, positions, told)
        if made is None or told is not None:
            return made
        return self._plain_loss(made, labels)

    def logits(self, input_ids: torch.Tensor) -> torch.Tensor | None:
        """Whole logits, float32, on the CPU of rank 0, None elsewhere; through all stages without a
        schedule. Every rank calls it with the same whole sequences."""
        self._prepare(training=False)
        own = relay_forward(self._stages, self._mesh, self._shapes, self.own_tokens(input_ids))
        output = None if own is None else self._joined(own.float())
        place, last = self._mesh.coordinate, self._plan.worker_of_stage(self._plan.stages - 1)
        if place.data or place.context or place.tensor or place.pipeline not in (0, last):
            return None
        if last == 0:
            return None if output is None else output.cpu().contiguous()
        group = self._mesh.pipeline_group
        if output is not None:
            dist.send(output.contiguous(), group=group, group_dst=0)
            return None
        shape = (*input_ids.shape, self.config.vocab_size)
        received = torch.empty(shape, dtype=torch.float32, device=self._device)
        dist.recv(received, group=group, group_src=last)
        return received.cpu()

    def _joined(self, logits: torch.Tensor) -> torch.Tensor:
        """The ranks' parts of the sequences and of the vocabulary as one."""
        held, context = self._vocabulary, self._mesh.context_group
        if context is not None:
            order = self._mesh.context_part.order()
            blocks = gather(logits, 1, context).chunk(len(order), 1)
            logits = torch.cat([blocks[place] for place in order], 1)
        if held is None or held.group is None:
            return logits
        cut = even_cut(0, held.vocab, self._plan.tensor)
        sizes = [cut.length(rank) for rank in range(self._plan.tensor)]
        return gather(logits, -1, held.group, sizes)


def _already_a_loss(made: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    """What the last stage made is the sum already. A tensor of its own: the schedule cuts the
    stage's output off the graph once it has gone back through it."""
    return made.sum()

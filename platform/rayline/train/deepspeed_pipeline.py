"""DeepSpeed's PipelineModule (https://www.deepspeed.ai/tutorials/pipeline/): one stage of the model
on each rank, run by DeepSpeed's own 1F1B schedule, with ZeRO 0 or 1 over the ranks of a stage.

A stage is a single layer of the PipelineModule, so there is nothing left that DeepSpeed could cut
otherwise than the plan says. Of its train_batch, which steps by itself, only the passes are run
here: whether the optimizer moves is decided once every rank knows the loss and the norm. What has
no gradients (evaluation, logits) goes from stage to stage as it does under the native engine.
Written against DeepSpeed 0.19.8; PipelineEngine has no public way to run a schedule.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from itertools import repeat
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from deepspeed.pipe import PipelineModule
from deepspeed.runtime.pipe.schedule import (
    OptimizerStep,
    PipeInstruction,
    PipeSchedule,
    ReduceGrads,
    ReduceTiedGrads,
    TrainSchedule,
)
from torch import nn

from rayline.models.stage import ModelStage, load_config
from rayline.parallel.attention import check_packing
from rayline.parallel.mesh import GangMesh, build_mesh
from rayline.parallel.pipeline import split_layers
from rayline.parallel.vocabulary import VocabularySlice
from rayline.parallel.waiting import to_host
from rayline.spec import JobSpec, ModelShape, WorkerContext
from rayline.train.deepspeed_state import own_gradient
from rayline.train.engine import Batch
from rayline.train.objective import summed_cross_entropy
from rayline.train.recompute import recompute_layers
from rayline.train.stages import WorkerStages


class PipelinedStage:
    """One rank's stage, inside a PipelineModule."""

    def __init__(self, job: JobSpec, mesh: GangMesh, stage: ModelStage, device: torch.device):
        """`stage` has storage on `device`. Every rank calls it: groups are made."""
        vocab = int(stage.model.config.vocab_size)
        held = VocabularySlice(0, vocab, vocab, None)
        last = mesh.is_last_stage
        self.relayed = WorkerStages(
            job, mesh, {mesh.coordinate.pipeline: stage}, held if last else None, device
        )
        """The stage as it runs without a schedule."""
        self.layer = _Layer(stage)
        self.loss = _MicrobatchLosses(job, held)
        self.module = _pipeline_module(self.layer, mesh, self.loss)
        """What DeepSpeed wraps."""
        self.config = stage.model.config
        self.parameters = dict(stage.parameters_by_whole_name())
        """Each parameter of the stage once, by its Hugging Face name; a tied one whose original
        lies on another stage goes by its own name."""
        self.copies = {name: of for name, of in stage.tied.items() if name in self.parameters}
        """Parameters of this stage whose original lies on another one, to the original's name."""
        pairs = sorted(stage.tied.items(), key=lambda pair: pair[1])
        own = self.parameters
        self.tied = [own[name] for pair in pairs for name in pair if name in own]
        """Originals or copies on this stage, in the same order on both stages that share them."""
        self.ends = _ends(mesh)
        """The ranks of the stages that share them; None on other stages."""
        self._mark()

    def _mark(self) -> None:
        """Tell DeepSpeed which parameters a norm over all stages counts: each once."""
        for name, weight in self.parameters.items():
            weight.ds_pipe_replicated = name in self.copies  # type: ignore[attr-defined]
            # Else its clipping under stage 0 would count the first stage alone.
            weight.model_parallel = name not in self.copies  # type: ignore[attr-defined]


def build_pipelined_stage(
    job: JobSpec, context: WorkerContext, model_directory: Path, device: torch.device
) -> PipelinedStage:
    """This rank's stage on its device, with weights of no value. Every rank calls it, after
    torch.distributed is set up. Raises SpecError where the model can't be cut into stages."""
    # As deepspeed.initialize does, for which it is too early.
    deepspeed.init_distributed(dist_backend=get_accelerator().communication_backend_name())
    mesh = build_mesh(job.plan, context.rank, device.type)
    config = load_config(model_directory)
    shape = ModelShape.from_config(config.to_dict())
    layers = job.plan.stage_layers(shape, job.data.sequence_tokens)
    stage = ModelStage(config, split_layers(layers, mesh.coordinate.pipeline))
    check_packing(stage.model, job.data.packing)
    recompute_layers(stage.blocks, job.recompute)
    stage.materialize(device)
    return PipelinedStage(job, mesh, stage, device)


def _pipeline_module(layer: _Layer, mesh: GangMesh, loss: _MicrobatchLosses) -> PipelineModule:
    """DeepSpeed's module of one layer a stage, of which this rank has its own."""
    stages = mesh.plan.pipeline
    layers: list[nn.Module] = [nn.Identity() for _ in range(stages)]
    layers[mesh.coordinate.pipeline] = layer
    # It prints its topology and its partition.
    with contextlib.redirect_stdout(None):
        return PipelineModule(layers, num_stages=stages, loss_fn=loss, partition_method="uniform")


def _ends(mesh: GangMesh) -> dist.ProcessGroup | None:
    """All ranks of the first and of the last stage; None on the others. Every rank calls it."""
    pipelines = mesh.plan.groups("pipeline")
    ranks = sorted({rank for ranks in pipelines for rank in (ranks[0], ranks[-1])})
    group = dist.new_group(ranks)
    return group if dist.get_rank() in ranks else None


class _Layer(nn.Module):
    """A stage as DeepSpeed calls it, which hands it nothing but what the stage before sent."""

    def __init__(self, stage: ModelStage) -> None:
        super().__init__()
        self.stage = stage
        self._positions: Iterator[torch.Tensor | None] = repeat(None)

    def begin(self, positions: Sequence[torch.Tensor] | None) -> None:
        """Take each microbatch's positions for the passes to come, which go forward in order; every
        rank has them itself."""
        self._positions = repeat(None) if positions is None else iter(positions)

    def forward(self, received: torch.Tensor) -> torch.Tensor:
        """Hidden states, or on the last stage logits, of the next microbatch."""
        made: torch.Tensor = self.stage(received, next(self._positions))
        return made


class _MicrobatchLosses:
    """The PipelineModule's loss, which keeps what it summed."""

    def __init__(self, job: JobSpec, vocabulary: VocabularySlice) -> None:
        self._objective = job.objective
        self._vocabulary = vocabulary
        self.factor = 1.0
        self.sums: list[torch.Tensor] = []

    def begin(self, factor: float) -> None:
        """Forget the sums; the passes to come have losses times `factor`."""
        self.factor = factor
        self.sums = []

    def __call__(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        loss = summed_cross_entropy(logits, labels, self._vocabulary, self._objective)
        self.sums.append(loss.detach())
        return loss * self.factor


class _PassesOnly(TrainSchedule):
    """DeepSpeed's 1F1B without what it ends with."""

    def steps(self) -> Iterator[list[PipeInstruction]]:
        """The instructions of this stage, one list a beat."""
        ending = (ReduceTiedGrads, ReduceGrads, OptimizerStep)
        for instructions in super().steps():
            yield [one for one in instructions if not isinstance(one, ending)]


class _Alone(PipeSchedule):
    """A single instruction."""

    def __init__(self, instruction: PipeInstruction) -> None:
        super().__init__(micro_batches=1, stages=1, stage_id=0)
        self._instruction = instruction

    def steps(self) -> Iterator[list[PipeInstruction]]:
        """The one."""
        yield [self._instruction]


class PipelinePasses:
    """Passes through the stages of a pipeline. See `rayline.train.deepspeed_passes.Passes` for the
    contract."""

    def __init__(
        self, job: JobSpec, engine: Any, stage: PipelinedStage, device: torch.device
    ) -> None:
        """`engine`: DeepSpeed's, around the stage's PipelineModule."""
        self.makes_loss = bool(engine.is_last_stage())
        self._plan = job.plan
        self._engine = engine
        self._stage = stage
        self._device = device
        self._sequences = 0

    def forward_backward(self, batch: Batch, factor: float) -> float:
        """By DeepSpeed's schedule; then tied weights' gradients are summed, then all are reduced
        over the ranks of a stage."""
        engine, parts = self._engine, self._plan.microbatches
        if len(batch.input_ids) != self._sequences:
            # It keeps buffers of the shape that it saw first.
            engine.reset_activation_shape()
            self._sequences = len(batch.input_ids)
        positions = self._positions(batch)
        self._stage.layer.begin(None if positions is None else positions.chunk(parts))
        # DeepSpeed takes the mean over microbatches.
        self._stage.loss.begin(factor * parts)
        pairs = zip(batch.input_ids.chunk(parts), batch.labels.chunk(parts), strict=True)
        engine.set_dataiterator(iter(pairs))
        # What its train_batch begins with.
        engine.module.train()
        engine.total_loss = None
        engine._compute_loss = True
        engine._exec_schedule(_PassesOnly(parts, self._plan.pipeline, engine.stage_id))
        self._sum_tied_gradients()
        engine._exec_schedule(_Alone(ReduceGrads()))
        sums = self._stage.loss.sums
        return float(to_host(torch.stack(sums).sum())) if sums else 0.0

    def _sum_tied_gradients(self) -> None:
        """Let all ranks of both stages have the sum over all of them, as its equal parts: what a
        stage's reduction makes of equal parts depends on no order, so original and copy take the
        same step bit by bit."""
        for weight in self._stage.tied:
            gradient = own_gradient(self._engine, weight)
            dist.all_reduce(gradient, group=self._stage.ends)
            gradient.div_(self._plan.data)

    def _positions(self, batch: Batch) -> torch.Tensor | None:
        return None if batch.positions is None else batch.positions.to(self._device)

    def loss(self, batch: Batch) -> float:
        """All sequences at once, from stage to stage."""
        ids, labels = batch.input_ids.to(self._device), batch.labels.to(self._device)
        found = self._stage.relayed.loss(ids, labels, self._positions(batch))
        return 0.0 if found is None else float(found)

    def logits(self, input_ids: torch.Tensor) -> torch.Tensor | None:
        """From stage to stage."""
        return self._stage.relayed.logits(input_ids)

    def optimizer_step(self) -> None:
        """The instruction that its schedule would end with."""
        self._engine._exec_schedule(_Alone(OptimizerStep()))

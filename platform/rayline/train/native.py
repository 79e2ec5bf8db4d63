"""The native engine: torch DeviceMesh, DTensor, FSDP2 and torch.distributed.pipelining.

The order of the parallelisms is the order of the statements in `build_native_engine`: cut the
model into stages on the meta device, split layers over the tensor axis, shard over the data axis,
then fill in the weights that this rank holds.

A step is: microbatches forward and backward (gradients are sums over target tokens), gradients
that axes left partial are summed, one small all-reduce tells every rank the loss, the token count
and the global norm, then one scale (mean and clipping together) and the optimizer on the local
shards.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.pipelining.schedules import PipelineScheduleSingle

from rayline.models.stage import ModelStage, load_config
from rayline.models.weights import draw_random, read_pretrained
from rayline.parallel.data import choose_reduction, split_over_data_axis
from rayline.parallel.layout import held_rectangle, local_gradient, local_part
from rayline.parallel.mesh import GangMesh, build_mesh
from rayline.parallel.piece import Piece
from rayline.parallel.pipeline import StageShapes, build_schedule, relay_forward, split_layers
from rayline.parallel.tensor import split_over_tensor_axis, sum_partial_gradients
from rayline.spec import JobSpec, WorkerContext
from rayline.train.engine import Admits, Batch, StepOutcome, admit_all
from rayline.train.faults import find_faults
from rayline.train.gather import whole_tensors
from rayline.train.holdings import all_names, counts_on_stage, native_shards
from rayline.train.loss_scale import LossScale
from rayline.train.objective import count_targets, summed_cross_entropy
from rayline.train.optimizer import ShardedOptimizer, check_groups
from rayline.train.recompute import recompute_layers
from rayline.train.tied import TiedCopies

_COMPUTE_DTYPE = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def build_native_engine(
    job: JobSpec, context: WorkerContext, model_directory: Path, device: torch.device
) -> NativeEngine:
    """This rank's share of the model, with its weights. Every rank calls it, after
    torch.distributed is set up. Raises SpecError where the model cannot be split as planned."""
    plan = job.plan
    mesh = build_mesh(plan, context.rank, device.type)
    config = load_config(model_directory)
    layers = split_layers(config.num_hidden_layers, plan.pipeline, mesh.coordinate.pipeline)
    stage = ModelStage(config, layers)
    skeleton = copy.deepcopy(stage)
    partial_names: list[str] = []
    if plan.tensor > 1:
        words = stage.tensor_words
        partial_names = split_over_tensor_axis(stage.model, words, mesh.tensor, stage.embedding)
        stage.tie()
    recompute_layers(stage.blocks, job.recompute)
    if plan.data > 1 or job.precision != "fp32":
        dtype = _COMPUTE_DTYPE[job.precision]
        split_over_data_axis(stage, stage.blocks, mesh.data, plan, dtype)
    _materialize(stage, device)
    engine = NativeEngine(job, mesh, stage, partial_names, device)
    weights = [piece for piece in engine.pieces() if piece.tensor.startswith("weight/")]
    if job.init == "weights":
        read_pretrained(model_directory, weights)
    else:
        names = {name: skeleton.whole_name(name) for name, _ in skeleton.model.named_parameters()}
        draw_random(skeleton.model, names, weights, job.seed)
    engine.tied.copy_weights()
    engine.begin_average()
    check_groups(job.optim, all_names(engine.parameter_names))
    return engine


def _materialize(stage: ModelStage, device: torch.device) -> None:
    """Give meta parameters storage on `device`; buffers, which are real already, keep their
    values."""
    buffers = {name: buffer.clone() for name, buffer in stage.named_buffers()}
    stage.to_empty(device=device)
    for name, buffer in stage.named_buffers():
        buffer.copy_(buffers[name])
    stage.tie()


class NativeEngine:
    """One rank's stage of the model. See `rayline.train.engine.Engine` for the contract."""

    def __init__(
        self,
        job: JobSpec,
        mesh: GangMesh,
        stage: ModelStage,
        partial_names: list[str],
        device: torch.device,
    ) -> None:
        self._job = job
        self._mesh = mesh
        self._stage = stage
        self._device = device
        self.tied = TiedCopies.find(stage, mesh)
        self._parameters = {
            name: parameter
            for name, parameter in stage.parameters_by_whole_name()
            if parameter.requires_grad
        }
        self._partial = [self._parameters[stage.whole_name(name)] for name in partial_names]
        shards = native_shards(self._parameters, self.tied, mesh)
        decay = None if job.ema is None else job.ema.decay
        self._optimizer = ShardedOptimizer(shards, job.optim, average_decay=decay)
        config = stage.model.config
        self._shapes = StageShapes(
            sequences=job.sequences_per_microbatch,
            sequence_tokens=job.data.sequence_tokens,
            hidden=config.hidden_size,
            vocab=config.vocab_size,
            dtype=_COMPUTE_DTYPE[job.precision],
        )
        self._loss_scale = LossScale() if job.precision == "fp16" else None
        self._multiplier = 1.0
        self._schedules: dict[int, PipelineScheduleSingle] = {}

    @property
    def parameter_names(self) -> list[str]:
        """Hugging Face names of this stage's parameters."""
        return list(self._parameters)

    def step(self, batch: Batch, lr: float, admits: Admits = admit_all) -> StepOutcome:
        """Forward, backward, clip, optimizer."""
        loss_sum, tokens = self._forward_backward(batch)
        gradients = self._local_gradients()
        outcome = self._scaled_fitly(self._agree(loss_sum, tokens, gradients))
        if outcome.overflowed_at is not None:
            outcome = replace(outcome, applied=False)
        elif admits(outcome.loss, outcome.grad_norm):
            clip = self._job.optim.clip_grad_norm
            factor = 1.0 / outcome.tokens / self._multiplier
            if clip is not None and outcome.grad_norm > clip:
                factor *= clip / outcome.grad_norm
            torch._foreach_mul_(list(gradients.values()), factor)
            self._optimizer.step(gradients, lr)
        else:
            faults = find_faults(outcome, loss_sum, gradients)
            outcome = replace(outcome, applied=False, faults=faults)
        self._forget_gradients()
        return outcome

    def _scaled_fitly(self, outcome: StepOutcome) -> StepOutcome:
        """The outcome, marked where the gradients overflowed for the loss's scale; the next step
        has the scale that follows from it."""
        scale = self._loss_scale
        if scale is None:
            return outcome
        overflowed = (
            scale.can_fall and math.isfinite(outcome.loss) and not math.isfinite(outcome.grad_norm)
        )
        self._loss_scale = scale.after(overflowed=overflowed)
        return replace(outcome, overflowed_at=scale.value if overflowed else None)

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The sum over a microbatch's target tokens, times the multiplier."""
        loss = summed_cross_entropy(logits, labels, self._job.objective)
        return loss if self._multiplier == 1.0 else loss * self._multiplier

    def _forward_backward(self, batch: Batch) -> tuple[float, int]:
        """Sum of losses and count of target tokens over this rank's sequences; 0, 0 on a rank
        that does not see logits or repeats another tensor rank's."""
        input_ids = batch.input_ids.to(self._device)
        labels = batch.labels.to(self._device)
        self._stage.train()
        if self._loss_scale is not None:
            # Over the batch's places: sums over all its tokens would overflow by themselves.
            places = labels.numel() * self._job.plan.data
            self._multiplier = self._loss_scale.value / places
        if self._job.plan.pipeline > 1:
            losses: list[torch.Tensor] = []
            args = (input_ids,) if self._mesh.is_first_stage else ()
            target = labels if self._mesh.is_last_stage else None
            schedule = self._schedule_of(len(input_ids) // self._job.plan.microbatches)
            schedule.step(*args, target=target, losses=losses, return_outputs=False)
        else:
            losses = self._accumulate(input_ids, labels)
        sum_partial_gradients(self._partial, self._mesh.tensor.get_group())
        self.tied.sum_gradients()
        if not self._mesh.is_last_stage or self._mesh.coordinate.tensor > 0:
            return 0.0, 0
        loss_sum = float(torch.stack([loss.detach() for loss in losses]).sum())
        return loss_sum / self._multiplier, count_targets(labels)

    def _schedule_of(self, sequences: int) -> PipelineScheduleSingle:
        """The schedule for microbatches of so many sequences: its shapes are fixed, and a batch
        that grows takes another one at each rise."""
        if sequences not in self._schedules:
            shapes = replace(self._shapes, sequences=sequences)
            self._schedules[sequences] = build_schedule(
                self._stage, self._mesh, shapes, self._device, self._loss
            )
        return self._schedules[sequences]

    def _accumulate(self, input_ids: torch.Tensor, labels: torch.Tensor) -> list[torch.Tensor]:
        """Forward and backward of every microbatch on a pipeline of one stage."""
        parts = self._job.plan.microbatches
        losses = []
        for number, (ids, targets) in enumerate(
            zip(input_ids.chunk(parts), labels.chunk(parts), strict=True)
        ):
            choose_reduction(self._stage, self._job.plan, number)
            loss = self._loss(self._stage(ids), targets)
            loss.backward()
            losses.append(loss)
        return losses

    def _local_gradients(self) -> dict[str, torch.Tensor]:
        """This rank's shard of each gradient, sums over target tokens."""
        return {name: local_gradient(parameter) for name, parameter in self._parameters.items()}

    def _agree(
        self, loss_sum: float, tokens: int, gradients: dict[str, torch.Tensor]
    ) -> StepOutcome:
        """One all-reduce: every rank learns the loss, the tokens and the global norm."""
        owned = [grad for name, grad in gradients.items() if self._owns(name) and grad.numel()]
        square = 0.0
        if owned:
            square = float(torch.stack(torch._foreach_norm(owned)).double().square().sum())
        # float64 counts tokens exactly up to 2**53.
        total = torch.tensor([loss_sum, tokens, square], dtype=torch.float64, device=self._device)
        dist.all_reduce(total)
        loss_total, token_total, square_total = total.tolist()
        return StepOutcome(
            loss=loss_total / token_total,
            grad_norm=square_total**0.5 / token_total / self._multiplier,
            tokens=int(token_total),
        )

    def _owns(self, name: str) -> bool:
        """Whether this rank is the one that counts and writes its rectangle of the parameter."""
        parameter = self._parameters[name]
        return name not in self.tied.copied_names and counts_on_stage(parameter, self._mesh)

    def _forget_gradients(self) -> None:
        for parameter in self._parameters.values():
            parameter.grad = None

    def gradients(self, batch: Batch) -> Iterator[tuple[str, torch.Tensor]]:
        """Whole gradients of the mean loss, on rank 0."""
        loss_sum, tokens = self._forward_backward(batch)
        count = self._agree(loss_sum, tokens, {}).tokens
        named = {
            name: parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
            for name, parameter in self._parameters.items()
            if name not in self.tied.copied_names
        }
        for name, whole in whole_tensors(named, self._mesh):
            yield name, whole / count / self._multiplier
        self._forget_gradients()

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Whole weights, on rank 0; a tied weight goes by its original."""
        named = {
            name: parameter.detach()
            for name, parameter in self._parameters.items()
            if name not in self.tied.copied_names
        }
        yield from whole_tensors(named, self._mesh)

    def logits(self, input_ids: torch.Tensor) -> torch.Tensor | None:
        """Whole logits on rank 0, through all stages without a schedule."""
        self._stage.eval()
        output = relay_forward(self._stage, self._mesh, self._shapes, input_ids.to(self._device))
        last = self._mesh.plan.pipeline - 1
        if last == 0:
            return output.float().cpu() if output is not None and dist.get_rank() == 0 else None
        group, place = self._mesh.pipeline_group, self._mesh.coordinate
        if place.data == place.tensor == 0 and place.pipeline in (0, last):
            if output is not None:
                dist.send(output.float().contiguous(), group=group, group_dst=0)
            else:
                shape = (*input_ids.shape, self._shapes.vocab)
                received = torch.empty(shape, dtype=torch.float32, device=self._device)
                dist.recv(received, group=group, group_src=last)
                return received.cpu()
        return None

    def begin_average(self) -> None:
        """Let the running mean of the weights start at the weights; once they are filled in."""
        self._optimizer.begin_averages()

    def take_average(self) -> None:
        """The mean's rectangles into the weights'."""
        self._optimizer.take_averages()

    def pieces(self) -> list[Piece]:
        """Live storage: filling it restores this rank."""
        held = []
        for name, parameter in self._parameters.items():
            if name in self.tied.copied_names:
                continue
            shape, owner = tuple(parameter.shape), self._owns(name)
            offset, _ = held_rectangle(parameter)
            held.append(Piece(f"weight/{name}", shape, offset, local_part(parameter), owner))
            for part in self._optimizer.pieces(name):
                writes = owner if part.writes is None else part.writes
                key = f"optimizer/{part.slot}/{name}"
                held.append(Piece(key, part.shape, part.offset, part.data, writes))
        return held

    def scalars(self) -> dict[str, float | int]:
        """The optimizer's step count, and the loss's scale."""
        scale = {} if self._loss_scale is None else self._loss_scale.scalars()
        return {"optimizer_steps": self._optimizer.steps_done, **scale}

    def restore(self, pieces: list[Piece], scalars: dict[str, float | int]) -> None:
        """Take over the step count and let tied copies follow their originals."""
        self._optimizer.resume_at(int(scalars["optimizer_steps"]))
        if self._loss_scale is not None:
            self._loss_scale = LossScale.from_scalars(scalars)
        self.tied.copy_weights()
        for name in sorted(self.tied.here)[:1]:
            for slot in self._optimizer.slots(name):
                self.tied.copy_state(partial(self._optimizer.slot, slot))

"""The native engine: torch DeviceMesh, DTensor, FSDP2 and torch.distributed.pipelining.

The order of the parallelisms is the order of the statements in `build_native_engine`: cut the
model into stages on the meta device, split layers over the tensor axis, shard over the data axis,
then fill in the weights that this rank holds.

A step is: microbatches forward and backward (gradients are sums over target tokens), gradients
that axes left partial are summed, one small all-reduce tells every rank the loss, the token count
and the global norm, then one scale (mean and clipping together) and AdamW on the local shards.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

from rayline.models.stage import ModelStage, load_config
from rayline.models.weights import draw_random, read_pretrained
from rayline.parallel.data import choose_reduction, split_over_data_axis
from rayline.parallel.layout import held_rectangle, is_first_holder, local_gradient, local_part
from rayline.parallel.mesh import GangMesh, build_mesh
from rayline.parallel.piece import Piece
from rayline.parallel.pipeline import StageShapes, build_schedule, relay_forward, split_layers
from rayline.parallel.tensor import split_over_tensor_axis, sum_partial_gradients
from rayline.spec import JobSpec, WorkerContext
from rayline.train.engine import Batch, StepOutcome
from rayline.train.gather import whole_tensors
from rayline.train.objective import count_targets, summed_cross_entropy
from rayline.train.optimizer import SLOTS, ShardedAdamW
from rayline.train.tied import TiedCopies

_COMPUTE_DTYPE = {"fp32": torch.float32, "bf16": torch.bfloat16}


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
        self._optimizer = ShardedAdamW(
            {name: local_part(p) for name, p in self._parameters.items()},
            {name: p.dim() for name, p in self._parameters.items()},
            job.optim,
        )
        config = stage.model.config
        self._shapes = StageShapes(
            sequences=job.sequences_per_microbatch,
            sequence_tokens=job.data.sequence_tokens,
            hidden=config.hidden_size,
            vocab=config.vocab_size,
            dtype=_COMPUTE_DTYPE[job.precision],
        )
        self._schedule = (
            build_schedule(stage, mesh, self._shapes, device, summed_cross_entropy)
            if job.plan.pipeline > 1
            else None
        )

    def step(self, batch: Batch, lr: float) -> StepOutcome:
        """Forward, backward, clip, AdamW."""
        loss_sum, tokens = self._forward_backward(batch)
        gradients = self._local_gradients()
        outcome = self._agree(loss_sum, tokens, gradients)
        clip = self._job.optim.clip_grad_norm
        factor = 1.0 / outcome.tokens
        if clip is not None and outcome.grad_norm > clip:
            factor *= clip / outcome.grad_norm
        torch._foreach_mul_(list(gradients.values()), factor)
        self._optimizer.step(gradients, lr)
        self._forget_gradients()
        return outcome

    def _forward_backward(self, batch: Batch) -> tuple[float, int]:
        """Sum of losses and count of target tokens over this rank's sequences; 0, 0 on a rank
        that does not see logits or repeats another tensor rank's."""
        input_ids = batch.input_ids.to(self._device)
        labels = batch.labels.to(self._device)
        self._stage.train()
        if self._schedule is not None:
            losses: list[torch.Tensor] = []
            args = (input_ids,) if self._mesh.is_first_stage else ()
            target = labels if self._mesh.is_last_stage else None
            self._schedule.step(*args, target=target, losses=losses, return_outputs=False)
        else:
            losses = self._accumulate(input_ids, labels)
        sum_partial_gradients(self._partial, self._mesh.tensor.get_group())
        self.tied.sum_gradients()
        if not self._mesh.is_last_stage or self._mesh.coordinate.tensor > 0:
            return 0.0, 0
        return float(torch.stack([loss.detach() for loss in losses]).sum()), count_targets(labels)

    def _accumulate(self, input_ids: torch.Tensor, labels: torch.Tensor) -> list[torch.Tensor]:
        """Forward and backward of every microbatch on a pipeline of one stage."""
        parts = self._job.plan.microbatches
        losses = []
        for number, (ids, targets) in enumerate(
            zip(input_ids.chunk(parts), labels.chunk(parts), strict=True)
        ):
            choose_reduction(self._stage, self._job.plan, number)
            loss = summed_cross_entropy(self._stage(ids), targets)
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
            grad_norm=square_total**0.5 / token_total,
            tokens=int(token_total),
        )

    def _owns(self, name: str) -> bool:
        """Whether this rank is the one that counts and writes its rectangle of the parameter."""
        parameter = self._parameters[name]
        if name in self.tied.copied_names or not is_first_holder(parameter):
            return False
        axes = getattr(getattr(parameter, "device_mesh", None), "mesh_dim_names", ())
        return "tensor" in axes or self._mesh.coordinate.tensor == 0

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
            yield name, whole / count
        self._forget_gradients()

    def evaluate(self, batch: Batch) -> tuple[float, int]:
        """Sums over all data ranks, through all stages without a schedule."""
        self._stage.eval()
        input_ids = batch.input_ids.to(self._device)
        logits = relay_forward(self._stage, self._mesh, self._shapes, input_ids)
        total = torch.zeros(2, dtype=torch.float64, device=self._device)
        # Tensor ranks see the same logits: the first one counts.
        if logits is not None and self._mesh.coordinate.tensor == 0:
            labels = batch.labels.to(self._device)
            total[0] = summed_cross_entropy(logits, labels)
            total[1] = count_targets(labels)
        dist.all_reduce(total)
        return float(total[0]), int(total[1])

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

    def pieces(self) -> list[Piece]:
        """Live storage: filling it restores this rank."""
        held = []
        for name, parameter in self._parameters.items():
            if name in self.tied.copied_names:
                continue
            slots = {f"weight/{name}": local_part(parameter)}
            slots.update({f"optimizer/{s}/{name}": self._optimizer.slot(s, name) for s in SLOTS})
            offset, _ = held_rectangle(parameter)
            shape, owner = tuple(parameter.shape), self._owns(name)
            held += [Piece(key, shape, offset, data, owner) for key, data in slots.items()]
        return held

    def scalars(self) -> dict[str, float | int]:
        """The optimizer's step count."""
        return {"optimizer_steps": self._optimizer.steps_done}

    def restore(self, pieces: list[Piece], scalars: dict[str, float | int]) -> None:
        """Take over the step count and let tied copies follow their originals."""
        self._optimizer.resume_at(int(scalars["optimizer_steps"]))
        self.tied.copy_weights()
        for slot in SLOTS:
            self.tied.copy_state(partial(self._optimizer.slot, slot))

"""The native engine: torch DeviceMesh, explicit collectives, FSDP2 and torch pipelining.

The order of the parallelisms is the order of the statements in `build_native_engine`: cut the
model into stages on the meta device, split layers over the tensor axis, shard over the data axis,
then fill in the weights that this rank holds (see `rayline.train.stages` for how stages run).

A step is: microbatches forward and backward (gradients are sums over target tokens), gradients
that axes left partial are summed, one small all-reduce tells every rank the loss, the token count
and the global norm, then one scale (mean and clipping together) and the optimizer on the local
shards.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist

from rayline.errors import SpecError
from rayline.models.stage import ModelStage, load_config
from rayline.models.stored import StoredNames
from rayline.models.weights import draw_random, read_pretrained
from rayline.parallel.attention import check_packing
from rayline.parallel.data import split_experts_over_data_axis, split_over_data_axis
from rayline.parallel.experts import find_experts, spread_experts
from rayline.parallel.layout import TensorLayout, local_gradient, local_part
from rayline.parallel.mesh import GangMesh, build_mesh, sharing_group
from rayline.parallel.piece import Piece
from rayline.parallel.pipeline import split_layers
from rayline.parallel.replicas import Replicas
from rayline.parallel.tensor import TensorSplit, split_over_tensor_axis, sum_partial_gradients
from rayline.parallel.vocabulary import VocabularySlice
from rayline.parallel.waiting import to_host
from rayline.spec import JobSpec, ModelShape, WorkerContext
from rayline.train.compilation import compile_layers
from rayline.train.decision import decide
from rayline.train.engine import Admits, Batch, StepOutcome, admit_all
from rayline.train.faults import find_faults
from rayline.train.gather import whole_tensors
from rayline.train.holdings import all_names, native_shards
from rayline.train.loss_scale import LossScale
from rayline.train.objective import count_targets
from rayline.train.offload import offload_activations
from rayline.train.optimizer import ShardedOptimizer, check_groups
from rayline.train.recompute import recompute_layers
from rayline.train.routing import Routing
from rayline.train.stages import COMPUTE_DTYPE, WorkerStages
from rayline.train.tied import TiedCopies


def build_native_engine(
    job: JobSpec, context: WorkerContext, model_directory: Path, device: torch.device
) -> NativeEngine:
    """This rank's share of the model, with its weights. Every rank calls it, after
    torch.distributed is set up. Raises SpecError where the model cannot be split as planned."""
    plan = job.plan
    mesh = build_mesh(plan, context.rank, device.type)
    config = load_config(model_directory)
    shape = ModelShape.from_config(config.to_dict())
    layers = plan.stage_layers(shape, job.data.sequence_tokens)
    stages = {
        number: ModelStage(config, split_layers(layers, number))
        for number in plan.stages_of_worker(mesh.coordinate.pipeline)
    }
    draws = job.init == "random" and context.resume_step is None
    skeletons = copy.deepcopy(list(stages.values())) if draws else []
    split = TensorSplit()
    for stage in stages.values():
        check_packing(stage.model, job.data.packing)
        split.add(_split(stage, job, mesh), stage.whole_name)
        stage.materialize(device)
    replicas = None
    if _keeps_replicas(job):
        held = {number: stage.model.parameters() for number, stage in stages.items()}
        replicas = Replicas(held, mesh.replica_group)
    worker = WorkerStages(job, mesh, stages, split.vocabulary, device, replicas)
    engine = NativeEngine(job, mesh, worker, split, device, replicas)
    if context.resume_step is not None:
        # A snapshot fills in everything that the first weights would.
        return engine
    weights = [piece for piece in engine.pieces() if piece.tensor.startswith("weight/")]
    if job.init == "weights":
        read_pretrained(model_directory, weights, StoredNames(config.model_type))
    else:
        for skeleton in skeletons:
            parameters = skeleton.model.named_parameters()
            names = {name: skeleton.whole_name(name) for name, _ in parameters}
            draw_random(skeleton.model, names, weights, job.seed)
    engine.tied.copy_weights()
    engine.begin_average()
    check_groups(job.optim, all_names(engine.parameter_names))
    return engine


def _split(stage: ModelStage, job: JobSpec, mesh: GangMesh) -> TensorSplit:
    """Split one stage over the tensor, the context, the experts' and the data axis, in place; what
    the backward pass computes again and what is compiled is told in between."""
    plan = job.plan
    split = _split_over_tensor_axis(stage, mesh)
    if mesh.context_group is not None:
        stage.share_sequences(mesh.context_group, mesh.context_part)
    if plan.expert > 1:
        split.experts = spread_experts(stage.model, stage.expert_words, mesh.expert_group)
    recompute_layers(stage.blocks, job.recompute)
    if job.offload.activations == "cpu":
        offload_activations(stage.blocks)
    experts = [module for _, module in find_experts(stage.model, stage.expert_words)]
    compile_layers(stage.blocks, experts, job.compile)
    shards = plan.data * plan.context > 1 and not _keeps_replicas(job)
    if shards or job.precision != "fp32":
        dtype = COMPUTE_DTYPE[job.precision]
        if split.experts:
            split_experts_over_data_axis(experts, mesh.experts_data, plan, dtype)
        split_over_data_axis(stage, stage.blocks, mesh.data, plan, dtype)
    return split


def _keeps_replicas(job: JobSpec) -> bool:
    """Whether several data ranks keep plain whole weights of a stage, as nothing is sharded, cast
    or spread."""
    plan = job.plan
    if plan.data * plan.context == 1 or plan.expert > 1:
        return False
    return plan.zero_stage == 0 and job.precision == "fp32"


def _split_over_tensor_axis(stage: ModelStage, mesh: GangMesh) -> TensorSplit:
    """Cut the stage over the tensor axis, if it has more than one rank. Raises SpecError."""
    plan, parts = mesh.plan, stage.splittable
    if (plan.sequence or plan.context > 1) and not stage.can_cut_sequences:
        field = "sequence" if plan.sequence else "context"
        raise SpecError(
            f"plan.{field}",
            "the model's attention masks say more than causal order, so ranks can't hold parts of "
            "a sequence",
            value=getattr(plan, field),
            allowed="false" if plan.sequence else "1",
        )
    if plan.tensor == 1:
        whole = VocabularySlice(0, parts.vocab, parts.vocab, None)
        return TensorSplit(vocabulary=whole if parts.head is not None else None)
    split = split_over_tensor_axis(
        stage.model, stage.tensor_words, parts, mesh.tensor_group, sequence=plan.sequence
    )
    stage.sequence_parts = plan.tensor if plan.sequence else 1
    stage.tie()
    return split


class NativeEngine:
    """One rank's stages of the model. See `rayline.train.engine.Engine` for the contract."""

    def __init__(
        self,
        job: JobSpec,
        mesh: GangMesh,
        stages: WorkerStages,
        split: TensorSplit,
        device: torch.device,
        replicas: Replicas | None,
    ) -> None:
        self._job = job
        self._mesh = mesh
        self._stages = stages
        self._device = device
        self._replicas = replicas
        self.tied = TiedCopies.find(stages, mesh)
        self._parameters = {
            name: parameter
            for name, parameter in stages.parameters_by_whole_name()
            if parameter.requires_grad
        }
        self._layout = TensorLayout(
            mesh.coordinate.tensor,
            split.cuts,
            frozenset(split.experts),
            mesh.plan.expert_place(mesh.coordinate),
            mesh.plan.expert,
            first_replica=replicas is None or replicas.is_first,
        )
        self._partial = self._partial_groups(split.partial)
        shards = native_shards(self._parameters, self._layout, self.tied, mesh)
        decay = None if job.ema is None else job.ema.decay
        self._routing = Routing.find(stages.by_number, job, mesh, device)
        on_host = job.offload.optimizer == "cpu"
        self._optimizer = ShardedOptimizer(shards, job.optim, decay, on_host=on_host)
        self._loss_scale = LossScale() if job.precision == "fp16" else None
        self._multiplier = 1.0

    def _partial_groups(self, partial: list[str]) -> dict[str, dist.ProcessGroup]:
        """Parameter name to the ranks over which its gradients are to be summed."""
        cuts, place = self._layout.cuts, self._mesh.coordinate.tensor
        groups = dict.fromkeys(partial, self._mesh.tensor_group)
        sharing = max((len(cut.holders(place)) for cut in cuts.values()), default=1)
        group = sharing_group(self._mesh.plan, dist.get_rank(), sharing)
        if group is not None:
            groups |= {name: group for name, cut in cuts.items() if cut.shared}
        return groups

    @property
    def parameter_names(self) -> list[str]:
        """Hugging Face names of this stage's parameters."""
        return list(self._parameters)

    def step(self, batch: Batch, lr: float, admits: Admits = admit_all) -> StepOutcome:
        """Forward, backward, clip, optimizer."""
        loss_sum, tokens = self._forward_backward(batch)
        gradients = self._local_gradients()
        outcome = self._agree(loss_sum, tokens, gradients)
        if self._routing is not None:
            outcome = replace(outcome, routing=self._routing.report())
        outcome, self._loss_scale = decide(
            outcome, self._loss_scale, admits, lambda own: find_faults(own, loss_sum, gradients)
        )
        if outcome.applied:
            clip = self._job.optim.clip_grad_norm
            factor = 1.0 / outcome.tokens / self._multiplier
            if clip is not None and outcome.grad_norm > clip:
                factor *= clip / outcome.grad_norm
            torch._foreach_mul_(list(gradients.values()), factor)
            self._optimizer.step(gradients, lr)
        self._forget_gradients()
        return outcome

    def _forward_backward(self, batch: Batch) -> tuple[float, int]:
        """Sum of losses and count of target tokens over this rank's sequences; 0, 0 on a rank
        that does not see logits or repeats another tensor rank's."""
        if self._loss_scale is not None:
            # Over the batch's places: sums over all its tokens would overflow by themselves.
            places = batch.labels.numel() * self._job.plan.data
            self._multiplier = self._loss_scale.value / places
        labels = self._stages.own_tokens(batch.labels)
        if self._routing is not None:
            self._routing.begin(batch.labels, labels, self._multiplier)
        losses = self._stages.forward_backward(
            self._stages.own_tokens(batch.input_ids),
            labels,
            self._positions(batch),
            self._multiplier,
        )
        # First: two sums of one tensor must not be under way at once.
        if self._replicas is not None:
            self._replicas.finish()
        sum_partial_gradients(
            (local_gradient(self._parameters[name]), group) for name, group in self._partial.items()
        )
        self.tied.sum_gradients()
        if not self._mesh.is_last_stage or self._mesh.coordinate.tensor > 0:
            return 0.0, 0
        loss_sum = float(to_host(torch.stack([loss.detach() for loss in losses]).sum()))
        return loss_sum / self._multiplier, count_targets(labels)

    def _positions(self, batch: Batch) -> torch.Tensor | None:
        """Those of the whole sequences, on this rank's device: its tokens may see those that other
        ranks hold."""
        return None if batch.positions is None else batch.positions.to(self._device)

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
            square = to_host(torch.stack(torch._foreach_norm(owned)).double().square().sum())
        # float64 counts tokens exactly up to 2**53.
        total = torch.tensor([loss_sum, tokens, square], dtype=torch.float64, device=self._device)
        dist.all_reduce(total)
        loss_total, token_total, square_total = to_host(total)
        return StepOutcome(
            loss=loss_total / token_total,
            grad_norm=square_total**0.5 / token_total / self._multiplier,
            tokens=int(token_total),
        )

    def _owns(self, name: str) -> bool:
        """Whether this rank is the one that counts and writes its rectangle of the parameter."""
        if name in self.tied.copied_names:
            return False
        return self._layout.answers_for(name, self._parameters[name])

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
        for name, whole in whole_tensors(named, self._mesh, self._layout):
            yield name, whole / count / self._multiplier
        self._forget_gradients()

    def evaluate(self, batch: Batch) -> tuple[float, int]:
        """Sums over all data ranks, through all stages without a schedule."""
        labels = self._stages.own_tokens(batch.labels)
        input_ids = self._stages.own_tokens(batch.input_ids)
        loss = self._stages.loss(input_ids, labels, self._positions(batch))
        total = torch.zeros(2, dtype=torch.float64, device=self._device)
        # Tensor ranks have the same loss: the first one counts.
        if loss is not None and self._mesh.coordinate.tensor == 0:
            total[0] = loss
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
        yield from whole_tensors(named, self._mesh, self._layout)

    def logits(self, input_ids: torch.Tensor) -> torch.Tensor | None:
        """Whole logits on rank 0, through all stages without a schedule."""
        return self._stages.logits(input_ids)

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
            shape, owner = self._layout.whole_shape(name, parameter), self._owns(name)
            weight = local_part(parameter)
            held += [
                Piece(f"weight/{name}", shape, one.offset, weight[one.view], owner)
                for one in self._layout.held(name, parameter)
            ]
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
        with self._optimizer.on_device():
            for name in sorted(self.tied.here)[:1]:
                for slot in self._optimizer.slots(name):
                    self.tied.copy_state(partial(self._optimizer.slot, slot))

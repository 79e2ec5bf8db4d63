"""The deepspeed engine: ZeRO stages 0 to 3 (Rajbhandari et al. 2020) over the data axis, and AutoTP
over the tensor axis or PipelineModule over the pipeline axis.

What it computes is what the native engine computes. DeepSpeed averages gradients over ranks, and
by default over microbatches too; a mean over the target tokens of the global batch is something
else as soon as ranks hold different numbers of them. So the tokens are counted first, and each
microbatch's summed loss is handed over times data ranks / tokens: DeepSpeed's mean over them is
then the sum that is wanted. Checkpoints are in the common form: whole float32 tensors, cut along
dim 0 over the ranks, so that any stage, and the native engine, goes on from them.
"""

from __future__ import annotations

import math
import os
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator, set_accelerator
from deepspeed.accelerator.cpu_accelerator import CPU_Accelerator
from deepspeed.utils import groups
from torch import nn

from rayline.parallel.piece import Piece
from rayline.parallel.waiting import to_host
from rayline.spec import JobSpec, OffloadSpec, OptimSpec, WorkerContext
from rayline.train.decision import decide
from rayline.train.deepspeed_holders import HeldParameters, StageHolders
from rayline.train.deepspeed_model import WholeModel, build_whole_model, initial_weights
from rayline.train.deepspeed_passes import Passes, WholePasses
from rayline.train.deepspeed_pipeline import PipelinePasses, build_pipelined_stage
from rayline.train.deepspeed_state import ScatteredState, scattered_state
from rayline.train.deepspeed_tensor import OverTensorAxis, cut_dims, layer_specs
from rayline.train.engine import Admits, Batch, Fault, StepOutcome, admit_all
from rayline.train.faults import MOST_NAMED, find_faults
from rayline.train.holdings import all_names
from rayline.train.loss_scale import LossScale
from rayline.train.objective import count_targets
from rayline.train.optimizer import AVERAGE, check_groups, rate_and_decay
from rayline.train.rules.elementwise import torch_optimizer, torch_slots
from rayline.train.stages import COMPUTE_DTYPE

BUCKET_ELEMENTS = 50_000_000
"""Gradients and weights travel in buckets of this many elements: 200 MB in float32, where
DeepSpeed's default of 500 million would set 2 GB aside on every rank."""


def build_deepspeed_engine(
    job: JobSpec, context: WorkerContext, model_directory: Path, device: torch.device
) -> DeepSpeedEngine:
    """This rank's share under DeepSpeed, with its initial weights. Every rank calls it, after
    torch.distributed is set up: DeepSpeed adopts its default group. Raises SpecError,
    CheckpointError where the model cannot be read."""
    _make_ready(context, device)
    if job.plan.pipeline > 1:
        engine = _build_pipelined(job, context, model_directory, device)
    else:
        engine = _build_whole(job, model_directory, device)
    # Last, because DeepSpeed would begin its float32 weights with what it had rounded to bf16.
    engine.take_weights(initial_weights(job, model_directory, engine.wanted_weights))
    return engine


def _build_whole(job: JobSpec, model_directory: Path, device: torch.device) -> DeepSpeedEngine:
    model = build_whole_model(job, model_directory)
    names = model.parameters_by_name
    cut = cut_dims(model.tensor_words, list(names)) if job.plan.tensor > 1 else {}
    held = HeldParameters(names, cut=cut)
    # Before stage 3 empties parameters: whether they are matrices is asked of their shape.
    optimizer = _optimizer(held, job.optim)
    configuration = {**_configuration(job, device), **_tensor_parallel(job, model)}
    _turn_weights(job, held)
    if job.plan.zero_stage == 3:
        # Cut weight by weight, so that no device ever holds the whole model.
        deepspeed.zero.Init(module=model, config_dict_or_path=configuration)
    wrapped, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=configuration)
    whole: Any = model.model
    passes = WholePasses(job, wrapped, int(whole.config.vocab_size), device)
    return DeepSpeedEngine(job, wrapped, passes, held, device)


def _build_pipelined(
    job: JobSpec, context: WorkerContext, model_directory: Path, device: torch.device
) -> DeepSpeedEngine:
    stage = build_pipelined_stage(job, context, model_directory, device)
    held = HeldParameters(stage.parameters, copies=stage.copies)
    optimizer = _optimizer(held, job.optim)
    _turn_weights(job, held)
    wrapped, *_ = deepspeed.initialize(
        model=stage.module, optimizer=optimizer, config=_configuration(job, device)
    )
    passes = PipelinePasses(job, wrapped, stage, device)
    return DeepSpeedEngine(job, wrapped, passes, held, device)


def _turn_weights(job: JobSpec, held: HeldParameters) -> None:
    """Let weights be of the type that computes, under ZeRO, which keeps others in float32; buffers,
    such as the rotary frequencies, stay float32."""
    if job.precision != "fp32" and job.plan.zero_stage > 0:
        for weight in held.by_name.values():
            weight.data = weight.data.to(COMPUTE_DTYPE[job.precision])


def _make_ready(context: WorkerContext, device: torch.device) -> None:
    """Set what DeepSpeed holds in globals of the process, left by an engine before this one or
    guessed from the machine."""
    if device.type == "cpu" and not isinstance(get_accelerator(), _Host):
        set_accelerator(_Host())
    # DeepSpeed takes the device's number from this variable and from nowhere else.
    os.environ["LOCAL_RANK"] = str(context.local_rank)
    # Groups of a torch.distributed that is gone, where this process has trained before.
    groups._release_process_group_references()
    # DeepSpeed asks this table which C++ extensions it may compile. None: on CPU it would build one
    # for collectives within a node, which takes a compiler and half a minute.
    deepspeed.ops.__compatible_ops__ = {}
    # DeepSpeed's choice of collectives is nothing that a user of rayline could mend.
    warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)


class _Host(CPU_Accelerator):
    """DeepSpeed allows fp16 only where oneDNN has it; torch computes in it on any CPU."""

    def is_fp16_supported(self) -> bool:
        """Yes, if slowly."""
        return True


def _optimizer(held: HeldParameters, spec: OptimSpec) -> torch.optim.Optimizer:
    """torch's own, so that nothing is compiled; the groups are the native engine's."""
    alike: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    for name, weight in held.by_name.items():
        alike[rate_and_decay(held.original(name), weight.dim(), spec)].append(weight)
    check_groups(spec, all_names(map(held.original, held.by_name)))
    told = [
        {"params": weights, "lr_scale": lr_scale, "weight_decay": decay}
        for (lr_scale, decay), weights in alike.items()
    ]
    return torch_optimizer(spec, told)


def _configuration(job: JobSpec, device: torch.device) -> dict[str, Any]:
    """DeepSpeed's configuration, in its own words
    (https://www.deepspeed.ai/docs/config-json/)."""
    stage = job.plan.zero_stage
    return {
        "train_micro_batch_size_per_gpu": job.sequences_per_microbatch,
        "gradient_accumulation_steps": job.plan.microbatches,
        "gradient_clipping": job.optim.clip_grad_norm or 0.0,
        "zero_optimization": {
            "stage": stage,
            "reduce_bucket_size": BUCKET_ELEMENTS,
            "allgather_bucket_size": BUCKET_ELEMENTS,
            "stage3_prefetch_bucket_size": BUCKET_ELEMENTS,
            **_offload(job.offload, device),
        },
        # torch's AdamW steps on the host, too; DeepSpeed's own would have to be compiled.
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": job.precision == "bf16" and stage > 0},
        # Not 0, which would let DeepSpeed choose the scale.
        "fp16": {"enabled": job.precision == "fp16" and stage > 0, "loss_scale": 1.0},
        "data_types": {"grad_accum_dtype": "fp32"},
        # In bf16, DeepSpeed would sum gradients over the ranks in bf16.
        "communication_data_type": "fp32",
    }


def _tensor_parallel(job: JobSpec, model: WholeModel) -> dict[str, Any]:
    """The part of DeepSpeed's configuration that cuts matrices over the tensor axis."""
    if job.plan.tensor == 1:
        return {}
    told = {"use_default_specs": False, "layer_specs": layer_specs(model.tensor_words)}
    return {"tensor_parallel": {"autotp_size": job.plan.tensor, "partition_config": told}}


def _offload(spec: OffloadSpec, device: torch.device) -> dict[str, Any]:
    """What stays elsewhere; pinned where there is a device to copy to."""
    places = {"offload_optimizer": spec.optimizer, "offload_param": spec.parameters}
    return {
        key: {"device": place, "pin_memory": device.type != "cpu"}
        for key, place in places.items()
        if place != "none"
    }


class DeepSpeedEngine:
    """One rank under ZeRO. See `rayline.train.engine.Engine` for the contract."""

    def __init__(
        self,
        job: JobSpec,
        engine: Any,
        passes: Passes,
        held: HeldParameters,
        device: torch.device,
    ) -> None:
        self._job = job
        self._engine = engine
        self._passes = passes
        self._held = held
        self._device = device
        # Tensor ranks compute the same loss: the first of them is heard.
        first = job.plan.coordinate(dist.get_rank()).tensor == 0
        self._is_heard = passes.makes_loss and first
        self._slots = (*torch_slots(job.optim), *([] if job.ema is None else [AVERAGE]))
        self._state: ScatteredState = scattered_state(engine, self._slots)
        dims = {}
        if job.plan.tensor > 1:
            dims = {held.by_name[name]: dim for name, dim in held.cut.items()}
            group = groups.get_tensor_model_parallel_group()
            self._state = OverTensorAxis(self._state, dims, group)
        self._shapes = {
            name: _shape(weight, dims.get(weight), job.plan.tensor)
            for name, weight in held.by_name.items()
        }
        self._originals = {n: w for n, w in held.by_name.items() if n not in held.copies}
        shapes = {name: self._shapes[name] for name in self._originals}
        group = engine.mpu.get_data_parallel_group() if job.plan.pipeline > 1 else None
        self._holders = StageHolders(job.plan, shapes, group, device)
        self._loss_scale = LossScale() if job.precision == "fp16" else None
        self._steps_done = 0
        self._loss_here = 0.0

    @property
    def wanted_weights(self) -> dict[str, nn.Parameter]:
        """Names that `take_weights` wants, to what takes them: a tied copy takes its original's."""
        return {self._held.original(name): w for name, w in self._held.by_name.items()}

    def take_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> None:
        """Begin with these: each wanted name and whole value, the same on every rank of a stage."""
        takers = self.wanted_weights
        for name, whole in weights:
            self._state.put(takers[name], None, whole.to(self._device))
        self._state.publish()
        if self._job.ema is not None:
            self._state.masters.begin_average()

    def step(self, batch: Batch, lr: float, admits: Admits = admit_all) -> StepOutcome:
        """Forward, backward, clip, optimizer step."""
        loss, tokens = self._forward_backward(batch)
        outcome = StepOutcome(loss=loss, grad_norm=self._state.gradient_norm(), tokens=tokens)
        outcome, self._loss_scale = decide(outcome, self._loss_scale, admits, self._find_faults)
        if not outcome.applied:
            self._state.drop_gradients()
            return outcome
        for group in self._engine.optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        self._passes.optimizer_step()
        self._steps_done += 1
        if self._job.ema is not None:
            self._state.masters.move_average(self._job.ema.decay)
        return outcome

    def _find_faults(self, outcome: StepOutcome) -> tuple[Fault, ...]:
        """The first places where values are not finite; collective."""
        faults = find_faults(outcome, self._loss_here, {})
        faults += tuple(Fault(None, what) for what in self._faulty_gradients(outcome))
        return faults[:MOST_NAMED]

    def _faulty_gradients(self, outcome: StepOutcome) -> list[str]:
        """Parameters of all stages whose sum of gradients over the ranks is not finite: DeepSpeed
        keeps no rank's own. Nothing is gathered where the norm is finite."""
        if math.isfinite(outcome.grad_norm):
            return []
        faulty = [n for n, g in self._whole_gradients() if not g.isfinite().all()]
        everywhere: list[list[str]] = [[] for _ in range(dist.get_world_size())]
        dist.all_gather_object(everywhere, faulty)
        names = dict.fromkeys(name for here in everywhere for name in here)
        return [f"gradient of {name}, summed" for name in names]

    def _forward_backward(self, batch: Batch) -> tuple[float, int]:
        """Mean loss and target tokens of the global batch; afterwards DeepSpeed holds the gradient
        of that mean."""
        tokens = int(self._sum_over_data(count_targets(batch.labels)))
        if self._loss_scale is not None:
            self._state.set_loss_scale(self._loss_scale.value)
        factor = self._state.loss_factor * self._job.plan.data / tokens
        self._loss_here = self._passes.forward_backward(batch, factor)
        self._state.settle()
        return self._sum_over_data(self._loss_here) / tokens, tokens

    def _sum_over_data(self, value: float) -> float:
        # float64 counts tokens exactly up to 2**53.
        own = value if self._is_heard else 0.0
        total = torch.tensor(own, dtype=torch.float64, device=self._device)
        dist.all_reduce(total)
        return float(to_host(total))

    def gradients(self, batch: Batch) -> Iterator[tuple[str, torch.Tensor]]:
        """Each whole gradient, on rank 0."""
        self._forward_backward(batch)
        yield from self._holders.on_rank_0(self._whole_gradients())
        self._state.drop_gradients()

    def _whole_gradients(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, weight in self._originals.items():
            yield name, self._state.gradient(weight)

    def evaluate(self, batch: Batch) -> tuple[float, int]:
        """Sums over all ranks."""
        loss = self._passes.loss(batch)
        tokens = int(self._sum_over_data(count_targets(batch.labels)))
        return self._sum_over_data(loss), tokens

    def logits(self, input_ids: torch.Tensor) -> torch.Tensor | None:
        """The whole logits, on rank 0."""
        return self._passes.logits(input_ids)

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Each whole weight, on rank 0."""
        named = ((n, self._state.whole(w, None)) for n, w in self._originals.items())
        yield from self._holders.on_rank_0(named)

    def take_average(self) -> None:
        """The mean's rectangles into the weights'."""
        for weight in self._held.by_name.values():
            self._state.put(weight, None, self._state.whole(weight, AVERAGE))
        self._state.publish()

    def pieces(self) -> list[Piece]:
        """Copies of the rows of weights and running means that this rank writes; of a tied copy
        those that it will read."""
        return [
            self._holders.piece(
                key,
                self._shapes[name],
                self._state.whole(self._held.by_name[name], slot),
                owner=name in self._originals,
            )
            for key, name, slot in self._keys()
        ]

    def _keys(self) -> Iterator[tuple[str, str, str | None]]:
        """Key in a checkpoint, parameter and slot of every tensor, the same on every rank of a
        stage."""
        for name in self._held.by_name:
            original = self._held.original(name)
            yield f"weight/{original}", name, None
            for slot in self._slots:
                yield f"optimizer/{slot}/{original}", name, slot

    def scalars(self) -> dict[str, float | int]:
        """The optimizer's step count, and the loss's scale."""
        scale = {} if self._loss_scale is None else self._loss_scale.scalars()
        return {"optimizer_steps": self._steps_done, **scale}

    def restore(self, pieces: list[Piece], scalars: dict[str, float | int]) -> None:
        """Give every rank's rows back to DeepSpeed."""
        by_key = {piece.tensor: piece for piece in pieces}
        for key, name, slot in self._keys():
            whole = self._holders.whole(by_key[key])
            self._state.put(self._held.by_name[name], slot, whole)
        self._state.publish()
        self._steps_done = int(scalars["optimizer_steps"])
        self._state.masters.set_steps_done(self._steps_done)
        if self._loss_scale is not None:
            self._loss_scale = LossScale.from_scalars(scalars)


def _shape(weight: nn.Parameter, cut: int | None, parts: int) -> tuple[int, ...]:
    """Shape of the whole parameter, of which each rank holds one of `parts` along dim `cut`; under
    stage 3 the parameter itself is empty between uses."""
    shape = tuple(getattr(weight, "ds_shape", weight.shape))
    return tuple(size * parts if dim == cut else size for dim, size in enumerate(shape))

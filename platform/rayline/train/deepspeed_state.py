"""Whole weights, optimizer states and gradients, out of and into what DeepSpeed scatters.

DeepSpeed keeps them in three ways: stage 0 on the parameters themselves, stages 1 and 2 in flat
float32 partitions that cross the bounds of parameters, stage 3 in one padded partition for each
parameter. Each way is a class here with the same methods. Reading goes by the public functions of
deepspeed.utils (safe_get_full_*, safe_set_local_*); what they lack (states before the first step,
the low-precision copies, gradients dropped without a step) reaches into DeepSpeed's optimizers,
here and nowhere else. Written against DeepSpeed 0.19.8.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist
from deepspeed.runtime.bf16_optimizer import BF16_Optimizer
from deepspeed.runtime.constants import PIPE_REPLICATED
from deepspeed.runtime.pipe.engine import PipelineEngine
from deepspeed.runtime.utils import combine_grad_norm_groups, get_global_norm_of_tensors
from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer
from deepspeed.utils import (
    safe_get_full_fp32_param,
    safe_get_full_grad,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
    safe_set_local_fp32_param,
    safe_set_local_optimizer_state,
)
from torch import nn

from rayline.train.deepspeed_masters import Masters


class ScatteredState(Protocol):
    """Collective: every rank calls each method, for the parameters in the same order. `slot` is one
    of the optimizer's, or None for the weight itself; tensors are float32 on the device. Gradients
    are those of the loss as it is, whatever scale the backward pass took place at."""

    masters: Masters
    """What the optimizer steps on this rank."""

    @property
    def loss_factor(self) -> float:
        """What the loss is to be multiplied by, besides what DeepSpeed multiplies it by."""
        ...

    def set_loss_scale(self, scale: float) -> None:
        """The scale of the next backward passes."""
        ...

    def whole(self, parameter: nn.Parameter, slot: str | None) -> torch.Tensor:
        """The whole tensor, on every rank."""
        ...

    def put(self, parameter: nn.Parameter, slot: str | None, whole: torch.Tensor) -> None:
        """Take over a whole tensor; `publish` follows once all are put."""
        ...

    def publish(self) -> None:
        """Let what computes (copies, gathered weights) follow what was put."""
        ...

    def settle(self) -> None:
        """Called once after the last microbatch, before anything asks for gradients."""
        ...

    def gradient(self, parameter: nn.Parameter) -> torch.Tensor:
        """The reduced gradient, after `settle` and before the step."""
        ...

    def gradient_norm(self) -> float:
        """Global 2-norm of the reduced gradient, before the step and before clipping; NaN where it
        is not finite."""
        ...

    def drop_gradients(self) -> None:
        """Forget gradients as if no backward pass had been."""
        ...


def scattered_state(engine: Any, slots: Sequence[str]) -> ScatteredState:
    """The class that fits DeepSpeed's engine, with a state of these slots for each parameter."""
    if not engine.zero_optimization():
        return OnParameters(engine, slots)
    if isinstance(engine.optimizer, DeepSpeedZeroOptimizer_Stage3):
        return InPaddedPartitions(engine.optimizer, slots)
    return InFlatPartitions(engine.optimizer, slots)


def own_gradient(engine: Any, parameter: nn.Parameter) -> torch.Tensor:
    """The tensor in which this rank alone has summed a step's microbatches, before DeepSpeed
    reduces it over the data ranks; of stages 0 and 1."""
    optimizer = engine.optimizer
    if isinstance(optimizer, BF16_Optimizer):
        found = parameter._hp_grad  # type: ignore[attr-defined]
    elif isinstance(optimizer, DeepSpeedZeroOptimizer):
        found = optimizer.get_param_gradient_attribute(parameter)
    else:
        found = parameter.grad
    if not isinstance(found, torch.Tensor):
        raise RuntimeError("the parameter has no gradient")
    return found


class OnParameters:
    """Stage 0: every rank holds everything."""

    def __init__(self, engine: Any, slots: Sequence[str]) -> None:
        self._engine = engine
        pipelined = isinstance(engine, PipelineEngine)
        self._pipeline = engine.mpu.get_pipe_parallel_group() if pipelined else None
        self._scale = 1.0
        self.masters = Masters(engine.optimizer, list(engine.module.parameters()), slots)

    @property
    def loss_factor(self) -> float:
        """All of the scale: DeepSpeed has none for weights in float32."""
        return self._scale

    def set_loss_scale(self, scale: float) -> None:
        """The scale of the next backward passes."""
        self._scale = scale

    def whole(self, parameter: nn.Parameter, slot: str | None) -> torch.Tensor:
        """The whole tensor, on every rank."""
        return self.masters.state[parameter][slot] if slot else parameter.detach()

    def put(self, parameter: nn.Parameter, slot: str | None, whole: torch.Tensor) -> None:
        """Take over a whole tensor."""
        self.whole(parameter, slot).copy_(whole)

    def publish(self) -> None:
        """Nothing to do: what was put is what computes."""

    def gradient(self, parameter: nn.Parameter) -> torch.Tensor:
        """The reduced gradient of the microbatches so far."""
        return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad

    def settle(self) -> None:
        """Scale the gradients back."""
        if self._scale != 1.0:
            gradients = [weight.grad for weight in self._engine.module.parameters()]
            torch._foreach_div_([grad for grad in gradients if grad is not None], self._scale)

    def gradient_norm(self) -> float:
        """Its norm: every rank holds all of its stage, where a tied copy counts nothing."""
        weights = self._engine.module.parameters()
        counted = [w for w in weights if not getattr(w, PIPE_REPLICATED, False)]
        gradients = [self.gradient(weight) for weight in counted]
        square = torch.stack(torch._foreach_norm(gradients)).double().square().sum()
        if self._pipeline is not None:
            dist.all_reduce(square, group=self._pipeline)
        return float(square.sqrt())

    def drop_gradients(self) -> None:
        """Forget gradients as if no backward pass had been."""
        self._engine.zero_grad()


class _InZeroOptimizer:
    """What the stages above 0 have in common: DeepSpeed's optimizer around torch's, which scales
    the loss, and steps with gradients that it has scaled back."""

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer
        self._scale = 1.0

    @property
    def loss_factor(self) -> float:
        """Nothing: DeepSpeed multiplies the loss itself."""
        return 1.0

    def set_loss_scale(self, scale: float) -> None:
        """The scale of the next backward passes."""
        self._scale = scale
        # BF16_Optimizer knows no scale.
        if not isinstance(self._optimizer, BF16_Optimizer):
            self._optimizer.override_loss_scale(scale)

    def settle(self) -> None:
        """Nothing to do: DeepSpeed's step scales back."""

    def gradient(self, parameter: nn.Parameter) -> torch.Tensor:
        """The reduced gradient of the microbatches so far."""
        gradient: torch.Tensor = safe_get_full_grad(parameter)
        return gradient if self._scale == 1.0 else gradient / self._scale

    def _norm(self, found: torch.Tensor | float) -> float:
        """DeepSpeed writes -1 for a norm that is not finite."""
        norm = float(found)
        return norm / self._scale if norm >= 0 else math.nan


class InFlatPartitions(_InZeroOptimizer):
    """Stages 1 and 2, and the optimizer of its own that DeepSpeed takes for stage 1 in bf16."""

    def __init__(self, optimizer: Any, slots: Sequence[str]) -> None:
        super().__init__(optimizer)
        if isinstance(optimizer, BF16_Optimizer):
            partitions = optimizer.fp32_groups_flat_partition
        else:
            partitions = optimizer.single_partition_of_fp32_groups
        self.masters = Masters(optimizer.optimizer, partitions, slots)
        optimizer._lazy_init_hp_params_optimizer_state()

    def whole(self, parameter: nn.Parameter, slot: str | None) -> torch.Tensor:
        """The whole tensor, on every rank."""
        if slot is None:
            return safe_get_full_fp32_param(parameter)
        return safe_get_full_optimizer_state(parameter, slot)

    def put(self, parameter: nn.Parameter, slot: str | None, whole: torch.Tensor) -> None:
        """Take over a whole tensor."""
        if slot is None:
            safe_set_full_fp32_param(parameter, whole)
        else:
            safe_set_full_optimizer_state(parameter, whole, slot)

    def publish(self) -> None:
        """Let what computes follow what was put."""
        self._optimizer.update_lp_params()

    def gradient_norm(self) -> float:
        """Its norm, as DeepSpeed's step takes it."""
        optimizer = self._optimizer
        if isinstance(optimizer, BF16_Optimizer):
            gradients, _ = optimizer.get_grads_for_norm()
            return self._norm(get_global_norm_of_tensors(gradients, mpu=optimizer.mpu))
        return self._norm(optimizer.scaled_global_norm())

    def drop_gradients(self) -> None:
        """Forget gradients as if no backward pass had been."""
        # What DeepSpeed does itself when it skips a step whose gradients overflowed.
        optimizer = self._optimizer
        optimizer.zero_grad(set_to_none=True)
        if not isinstance(optimizer, BF16_Optimizer):
            optimizer._release_preflattened_grad_buffers()
            if optimizer.cpu_offload:
                optimizer.reset_cpu_buffers()
            for gradients in (optimizer.averaged_gradients, optimizer.all_grad_tensors):
                gradients.update(dict.fromkeys(gradients))
            optimizer.micro_step_id = -1


class InPaddedPartitions(_InZeroOptimizer):
    """Stage 3: each parameter is cut into equal parts, the last ones padded."""

    def __init__(self, optimizer: DeepSpeedZeroOptimizer_Stage3, slots: Sequence[str]) -> None:
        super().__init__(optimizer)
        partitions = optimizer.fp32_partitioned_groups_flat
        self.masters = Masters(optimizer.optimizer, partitions, slots)

    def whole(self, parameter: nn.Parameter, slot: str | None) -> torch.Tensor:
        """The whole tensor, on every rank."""
        if slot is None:
            return safe_get_full_fp32_param(parameter)
        return safe_get_full_optimizer_state(parameter, slot)

    def put(self, parameter: nn.Parameter, slot: str | None, whole: torch.Tensor) -> None:
        """Take over a whole tensor."""
        # Not safe_set_full_*: it reads past the end where the parts do not come out even.
        size = parameter.ds_tensor.numel()  # type: ignore[attr-defined]
        values = whole.flatten()[dist.get_rank() * size :][:size]
        part = torch.zeros(size, dtype=torch.float32, device=whole.device)
        part[: values.numel()] = values
        if slot is None:
            safe_set_local_fp32_param(parameter, part)
        else:
            safe_set_local_optimizer_state(parameter, part, slot)

    def publish(self) -> None:
        """Let what computes follow what was put."""
        # The end of DeepSpeed's own step: partitions take the new values, then small parameters,
        # which it keeps whole, are gathered anew.
        optimizer = self._optimizer
        optimizer._partition_all_parameters()
        for group in range(len(optimizer.fp32_partitioned_groups_flat)):
            optimizer._reassign_or_swap_out_partitioned_parameters(group)
        if optimizer.persistent_parameters:
            optimizer.persistent_parameters[0].all_gather(optimizer.persistent_parameters)

    def gradient_norm(self) -> float:
        """Its norm, as DeepSpeed's step takes it."""
        return self._norm(combine_grad_norm_groups(self._optimizer._get_norm_groups()))

    def drop_gradients(self) -> None:
        """Forget gradients as if no backward pass had been."""
        optimizer = self._optimizer
        optimizer.zero_grad(set_to_none=True)
        optimizer.averaged_gradients = {}
        # What it has seen of this step would count as an overflow of the next one.
        optimizer.inf_or_nan_tracker.zero_()
        if optimizer.offload_optimizer:
            optimizer.reset_cpu_buffers()

"""Plain training on one process: what every plan is compared with.

transformers' AutoModelForCausalLM, torch's cross-entropy, clipping and optimizers, written out. It
shares with the engines what defines the job: the samples (rayline.data), the rate of a step
(rayline.train.schedule) and which steps are applied (rayline.train.guard); nothing of what computes
it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from rayline.data import Collated, collate, load_dataset
from rayline.spec import NO_TARGET, JobSpec, ObjectiveSpec, PlateauSchedule
from rayline.train.guard import Guard
from rayline.train.schedule import Plateau, learning_rate
from rayline.train.verify.plain_optimizers import plain_optimizer
from rayline.train.verify.trial import ReferenceResult

Tensors = dict[str, torch.Tensor]
Inputs = dict[str, Any]


def train_twice(job: JobSpec, model: Path, folder: Path, steps: int) -> ReferenceResult:
    """Train for `steps` and write gradients.safetensors (of step 1), start.safetensors and
    weights.safetensors (before and after) into `folder`; then again, summed up in another order,
    for the noise of rounding. One process calls it."""
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    batches = list(global_batches(job, model, steps))
    first = PlainTraining(job, model, all_at_once)
    save_file(first.weights(), str(folder / "start.safetensors"))
    gradients, losses, norms = first.train(batches)
    save_file(gradients, str(folder / "gradients.safetensors"))
    save_file(first.weights(), str(folder / "weights.safetensors"))
    backward = one_by_one_in_bf16 if job.precision == "bf16" else one_by_one
    again = PlainTraining(job, model, backward)
    gradients_again, losses_again, norms_again = again.train(batches)
    return ReferenceResult(
        losses=tuple(losses),
        grad_norms=tuple(norms),
        loss_noise=_distances(losses, losses_again),
        grad_norm_noise=_distances(norms, norms_again),
        gradient_noise=_noise(gradients, gradients_again),
        weight_noise=_noise(first.weights(), again.weights()),
    )


def global_batches(job: JobSpec, model: Path, steps: int) -> Iterator[Collated]:
    """The whole batches of the steps from 1 on."""
    dataset = load_dataset(job.data, model)
    order = dataset.order(job.seed)
    for step in range(1, steps + 1):
        begin, count = job.batch.samples_after(step - 1), job.batch.sequences_at(step)
        yield collate(dataset, order.indices(begin, count))


def _distances(first: list[float], second: list[float]) -> tuple[float, ...]:
    return tuple(abs(a - b) for a, b in zip(first, second, strict=True))


def _noise(first: Tensors, second: Tensors) -> dict[str, float]:
    return {name: float((first[name] - second[name]).norm()) for name in first}


Backward = Callable[[torch.nn.Module, Collated, ObjectiveSpec], float]
"""Adds the gradient of the mean loss to the parameters and returns the loss."""


class PlainTraining:
    """One model, one optimizer, one process."""

    def __init__(self, job: JobSpec, model: Path, backward: Backward) -> None:
        self._job = job
        self._backward = backward
        self._model: Any = AutoModelForCausalLM.from_pretrained(
            model,
            dtype=torch.float32,
            trust_remote_code=False,
            use_safetensors=True,
            # The one that is written out; the fused ones leave out what their kernel lacks.
            attn_implementation="eager",
        )
        self._model.train()
        named = dict(self._model.named_parameters())
        self._parameters = {name: p for name, p in named.items() if p.requires_grad}
        self._step = plain_optimizer(job.optim, self._parameters)
        self._guard = Guard(job.guard)
        self._plateau = Plateau()

    def train(self, batches: list[Collated]) -> tuple[Tensors, list[float], list[float]]:
        """A step a batch: step 1's gradients, and every step's loss and gradient norm."""
        gradients: Tensors = {}
        losses, norms = [], []
        optim = self._job.optim
        for step, batch in enumerate(batches, start=1):
            for parameter in self._parameters.values():
                parameter.grad = torch.zeros_like(parameter)
            losses.append(self._backward(self._model, batch, self._job.objective))
            gradients = gradients or self._gradients()
            # Infinity leaves gradients as they are, and the norm is told all the same.
            limit = optim.clip_grad_norm or float("inf")
            norms.append(float(torch.nn.utils.clip_grad_norm_(self._parameters.values(), limit)))
            if self._guard.admits(losses[-1], norms[-1]):
                self._step(learning_rate(optim, step, self._job.steps, self._plateau))
                self._remember(losses[-1])
        return gradients, losses, norms

    def _remember(self, loss: float) -> None:
        schedule = self._job.optim.schedule
        if isinstance(schedule, PlateauSchedule):
            self._plateau = self._plateau.after(loss, schedule)

    def _gradients(self) -> Tensors:
        return {
            name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
            for name, p in self._parameters.items()
        }

    def weights(self) -> Tensors:
        """A copy of every parameter, by its Hugging Face name."""
        return {name: p.detach().clone() for name, p in self._parameters.items()}


def all_at_once(model: torch.nn.Module, batch: Collated, objective: ObjectiveSpec) -> float:
    """The definition: the mean over all target tokens."""
    inputs = _inputs(batch.input_ids, batch.positions)
    logits = model(**inputs).logits
    loss = _summed_loss(logits, batch.labels, objective) / _targets(batch.labels)
    loss.backward()
    return loss.item()


def one_by_one(model: torch.nn.Module, batch: Collated, objective: ObjectiveSpec) -> float:
    """The same number, summed up from the last sequence to the first."""
    return _one_by_one(lambda inputs: model(**inputs).logits, batch, objective)


def one_by_one_in_bf16(model: torch.nn.Module, batch: Collated, objective: ObjectiveSpec) -> float:
    """The same, forward and backward in bf16, gradients added up in float32."""

    def logits(inputs: Inputs) -> torch.Tensor:
        cast = {name: weight.bfloat16() for name, weight in model.named_parameters()}
        found: torch.Tensor = torch.func.functional_call(model, cast, (), inputs).logits
        return found

    return _one_by_one(logits, batch, objective)


def _inputs(input_ids: torch.Tensor, positions: torch.Tensor | None) -> Inputs:
    """What the model is called with. Where documents are packed, transformers makes the mask out
    of the positions: they begin anew with each document."""
    return {"input_ids": input_ids, "position_ids": positions, "use_cache": False}


def _one_by_one(
    logits: Callable[[Inputs], torch.Tensor], batch: Collated, objective: ObjectiveSpec
) -> float:
    targets, total = _targets(batch.labels), 0.0
    for row in reversed(range(len(batch.labels))):
        one = slice(row, row + 1)
        positions = None if batch.positions is None else batch.positions[one]
        inputs = _inputs(batch.input_ids[one], positions)
        loss = _summed_loss(logits(inputs), batch.labels[one], objective) / targets
        loss.backward()
        total += loss.item()
    return total


def _targets(labels: torch.Tensor) -> int:
    return int((labels != NO_TARGET).sum())


def _summed_loss(
    logits: torch.Tensor, labels: torch.Tensor, objective: ObjectiveSpec
) -> torch.Tensor:
    """torch's own smoothed cross-entropy (Szegedy et al. 2016, section 7), and the z-loss
    (Chowdhery et al. 2022, section 5), over target tokens."""
    flat, targets = logits.float().flatten(0, 1), labels.flatten()
    loss = F.cross_entropy(
        flat,
        targets,
        ignore_index=NO_TARGET,
        reduction="sum",
        label_smoothing=objective.label_smoothing,
    )
    counted = targets != NO_TARGET
    return loss + objective.z_loss * flat.logsumexp(-1).square()[counted].sum()

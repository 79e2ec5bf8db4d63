"""Forward and backward passes under DeepSpeed, of a whole model on each rank."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.distributed as dist

from rayline.parallel.vocabulary import VocabularySlice
from rayline.parallel.waiting import to_host
from rayline.spec import JobSpec
from rayline.train.engine import Batch
from rayline.train.objective import summed_cross_entropy


class Passes(Protocol):
    """Every rank calls each method. Two implementations: a whole model, and one stage of a pipeline
    (see `rayline.train.deepspeed_pipeline`)."""

    makes_loss: bool
    """Whether this rank sees logits, and answers for its sequences' losses and targets."""

    def forward_backward(self, batch: Batch, factor: float) -> float:
        """Forward and backward of a step's microbatches, of losses summed over target tokens, times
        `factor`; then gradients are summed over the microbatches and averaged over the data ranks.
        Returns the sum of this rank's losses without the factor, 0 where it makes none."""
        ...

    def loss(self, batch: Batch) -> float:
        """The plain sum of the losses in evaluation mode, 0 where this rank makes none."""
        ...

    def logits(self, input_ids: torch.Tensor) -> torch.Tensor | None:
        """Whole logits, float32 on CPU on rank 0, None elsewhere."""
        ...

    def optimizer_step(self) -> None:
        """Clip, let the optimizer step, and forget the gradients."""
        ...


class WholePasses:
    """Microbatch after microbatch through a whole model. See `Passes` for the contract."""

    def __init__(self, job: JobSpec, engine: Any, vocab: int, device: torch.device) -> None:
        """`engine`: DeepSpeed's, around a `rayline.train.deepspeed_model.WholeModel`."""
        self.makes_loss = True
        self._job = job
        self._engine = engine
        self._vocabulary = VocabularySlice(0, vocab, vocab, None)
        self._device = device

    def forward_backward(self, batch: Batch, factor: float) -> float:
        """DeepSpeed reduces as the last microbatch goes back."""
        input_ids, labels = batch.input_ids.to(self._device), batch.labels.to(self._device)
        self._engine.train()
        parts = self._job.plan.microbatches
        losses = []
        positions = self._positions(batch)
        places: Sequence[torch.Tensor | None] = [None] * parts
        if positions is not None:
            places = positions.chunk(parts)
        for number, (ids, targets, place) in enumerate(
            zip(input_ids.chunk(parts), labels.chunk(parts), places, strict=True), start=1
        ):
            self._engine.set_gradient_accumulation_boundary(number == parts)
            logits = self._engine(ids, place)
            loss = summed_cross_entropy(logits, targets, self._vocabulary, self._job.objective)
            self._engine.backward(loss * factor, scale_wrt_gas=False)
            losses.append(loss.detach())
        return float(to_host(torch.stack(losses).sum()))

    def _positions(self, batch: Batch) -> torch.Tensor | None:
        return None if batch.positions is None else batch.positions.to(self._device)

    def loss(self, batch: Batch) -> float:
        """All sequences at once."""
        self._engine.eval()
        with torch.no_grad():
            logits = self._engine(batch.input_ids.to(self._device), self._positions(batch))
            labels = batch.labels.to(self._device)
            return float(summed_cross_entropy(logits, labels, self._vocabulary))

    def logits(self, input_ids: torch.Tensor) -> torch.Tensor | None:
        """Every rank computes them."""
        self._engine.eval()
        with torch.no_grad():
            output = self._engine(input_ids.to(self._device))
        return output.float().cpu() if dist.get_rank() == 0 else None

    def optimizer_step(self) -> None:
        """DeepSpeed's own."""
        self._engine.step()

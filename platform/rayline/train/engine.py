"""Engine: what the loop asks of whatever computes a step. Two implementations: `native` (torch
DeviceMesh, DTensor, FSDP2, torch.distributed.pipelining) and `deepspeed` (ZeRO, AutoTP,
PipelineModule).

Every method is called by every rank, in the same order: most are collective. Losses are summed
over target tokens and divided once, by the number of target tokens in the whole global batch, so
that no plan weighs a token differently from another.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch

from rayline.parallel.piece import Piece
from rayline.spec import RoutingReport


@dataclass(frozen=True, slots=True)
class Batch:
    """This data rank's share of a global batch."""

    input_ids: torch.Tensor
    """int64 [sequences, sequence_tokens]."""
    labels: torch.Tensor
    """int64 [sequences, sequence_tokens]: the token to predict at each place (already shifted by
    one), -100 where there is no loss."""
    positions: torch.Tensor | None = None
    """int64 [sequences, sequence_tokens]: each token's place in its document, from 0; attention
    stays within a document. None where a sequence is one document."""


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """What one optimizer step came to; the same on every rank."""

    loss: float
    """Mean over the target tokens of the global batch, before the step."""
    grad_norm: float
    """Global 2-norm of the gradient of that mean, before clipping."""
    tokens: int
    """Target tokens in the global batch."""
    applied: bool = True
    """False where `admits` refused: weights and optimizer are as they were."""
    faults: tuple[Fault, ...] = ()
    """Where values were not finite, of a step that was refused for it; the first few."""
    overflowed_at: float | None = None
    """Loss scale at which fp16 gradients overflowed: the step is skipped, `admits` was not asked,
    and the next one has a smaller scale. None where they did not."""
    routing: RoutingReport | None = None
    """How tokens went to experts; None where the engine or the model has none to tell of."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A place where a value was NaN or infinite."""

    rank: int | None
    """The rank that had it; None where only the sum over ranks is known."""
    what: str
    """"loss", or "gradient of " and the parameter's name."""

    def __str__(self) -> str:
        return self.what if self.rank is None else f"rank {self.rank}: {self.what}"


Admits = Callable[[float, float], bool]
"""Whether a step of this global mean loss and gradient norm is applied: see `rayline.train.guard`.
It answers alike on every rank."""


def admit_all(loss: float, grad_norm: float) -> bool:
    """Apply every step."""
    return True


class Engine(Protocol):
    """One rank's share of the model, its optimizer, and the collectives between the ranks."""

    def step(self, batch: Batch, lr: float, admits: Admits = admit_all) -> StepOutcome:
        """Forward, backward, clip, optimizer step at learning rate `lr`. `admits` is asked once,
        before the optimizer moves; where it refuses, the gradients are forgotten."""
        ...

    def evaluate(self, batch: Batch) -> tuple[float, int]:
        """Forward only, without gradients and in the model's evaluation mode: the sum of the losses
        and the number of target tokens, over the shares of all data ranks; the same on every rank.
        Unlike in a step the share may have any number of sequences, as long as all ranks' have the
        same, and may hold no target at all."""
        ...

    def gradients(self, batch: Batch) -> Iterator[tuple[str, torch.Tensor]]:
        """Forward and backward only; then yields, on rank 0 alone (other ranks take part and get
        nothing), each parameter's Hugging Face name and whole gradient of the mean loss, on CPU."""
        ...

    def logits(self, input_ids: torch.Tensor) -> torch.Tensor | None:
        """float32 [sequences, sequence_tokens, vocab] on CPU on rank 0, None elsewhere. `input_ids`
        is the same on every rank."""
        ...

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Each parameter's Hugging Face name and whole value, on CPU on rank 0 alone, one at a
        time (other ranks take part and get nothing)."""
        ...

    def take_average(self) -> None:
        """Put the running mean of the weights in their place: the end of training. Raises
        SpecError where the engine keeps none."""
        ...

    def pieces(self) -> list[Piece]:
        """This rank's rectangles of weights and optimizer state."""
        ...

    def scalars(self) -> dict[str, float | int]:
        """Small state that is no tensor, the same on every rank."""
        ...

    def restore(self, pieces: list[Piece], scalars: dict[str, float | int]) -> None:
        """Take over state: `pieces` came from `pieces()` and were filled in place since."""
        ...

"""What one optimizer step takes in, what it minimizes, and which steps are not taken."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from rayline.errors import SpecError
from rayline.spec.document import Document

NO_TARGET = -100
"""Label of a place without a loss: torch's and transformers' own ignore_index."""


class RampSpec(Document):
    """A global batch that begins small and grows in equal rises."""

    start: int = Field(ge=1)
    """Sequences of the first step."""
    increment: int = Field(ge=1)
    """Sequences that each rise adds; rises lead exactly from start to batch.sequences."""
    steps: int = Field(ge=1)
    """Steps before the full batch is reached."""


class BatchSpec(Document):
    """How much data makes one optimizer step."""

    sequences: int = Field(ge=1)
    """Sequences in one step, over all workers: the global batch."""
    ramp: RampSpec | None = None
    """How the batch grows up to that; null has it whole from the first step."""

    @model_validator(mode="after")
    def _rises_lead_there(self) -> Self:
        if self.ramp is None:
            return self
        missing = self.sequences - self.ramp.start
        if missing <= 0 or missing % self.ramp.increment:
            raise ValueError(
                f"ramp.start {self.ramp.start} plus rises of ramp.increment {self.ramp.increment} "
                f"does not lead to sequences {self.sequences}"
            )
        if missing // self.ramp.increment > self.ramp.steps:
            raise ValueError(
                f"ramp.steps {self.ramp.steps} is fewer than the "
                f"{missing // self.ramp.increment} rises that it takes"
            )
        return self

    def sequences_at(self, step: int) -> int:
        """The global batch of step `step`, counted from 1."""
        if self.ramp is None:
            return self.sequences
        rises = (self.sequences - self.ramp.start) // self.ramp.increment
        done = min(rises, (step - 1) * rises // self.ramp.steps)
        return self.ramp.start + done * self.ramp.increment

    def samples_after(self, step: int) -> int:
        """Sequences consumed once step `step` is done; 0 steps have consumed none."""
        if self.ramp is None:
            return step * self.sequences
        growing = min(step, self.ramp.steps)
        grown = sum(self.sequences_at(number) for number in range(1, growing + 1))
        return grown + (step - growing) * self.sequences

    def check_parts(self, parts: int, product: str) -> None:
        """Refuse a ramp whose batches cannot be divided into `parts` = `product`. Raises
        SpecError. The full batch is the plan's to check."""
        for name in ("start", "increment") if self.ramp is not None else ():
            size = getattr(self.ramp, name)
            if size % parts:
                raise SpecError(
                    f"batch.ramp.{name}",
                    f"not divisible by plan.data x plan.microbatches = {product}",
                    value=size,
                    allowed=f"a multiple of {parts}",
                    fix=f"--set batch.ramp.{name}={-(-size // parts) * parts}",
                )


class GuardSpec(Document):
    """Which steps no rank applies: judged alike on all ranks before the optimizer moves."""

    nonfinite: Literal["skip", "stop"] = "stop"
    """What becomes of a step whose loss or gradient is NaN or infinite."""
    spike_factor: float | None = Field(default=None, gt=1)
    """A step whose loss or gradient norm is more than this times its running mean is a spike; null
    lets spikes pass."""
    window_steps: int = Field(default=100, ge=1)
    """Applied steps that the running means span; spikes are judged once so many were seen."""
    on_spike: Literal["skip", "stop"] = "skip"
    """What becomes of a spike."""
    max_skips: int = Field(default=10, ge=0)
    """Steps in a row that may be skipped; one more stops the job."""


class ObjectiveSpec(Document):
    """What is added to the cross-entropy of the target tokens, and how it is computed."""

    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of each target that is spread evenly over the vocabulary."""
    z_loss: float = Field(default=0.0, ge=0)
    """Coefficient of the squared logarithm of the softmax's denominator, such as 1e-4."""
    router_aux_loss: float = Field(default=0.0, ge=0)
    """Coefficient of the balance loss of a mixture's routers (Fedus et al. 2021), such as the
    router_aux_loss_coef of the model's config; taken over each sequence by itself, and averaged
    over sequences and layers. The reported loss is without it."""
    expert_capacity_factor: float | None = Field(default=None, gt=0)
    """What each expert of a mixture takes of a sequence at most while training: this times its
    even share of the choices, rounded up, in the order of the tokens. Further choices are dropped:
    the expert adds nothing to those tokens (Fedus et al. 2021). null drops nothing; evaluation and
    the exported model never do."""
    chunk_tokens: int | None = Field(default=None, ge=1)
    """Tokens of a microbatch whose logits are there at a time, such as 1024: the head and the loss
    are computed together, chunk by chunk, and gradients are kept in place of logits. It changes
    nothing but rounding, and saves memory where a worker's microbatch has more tokens than the
    hidden states are wide. null computes all logits at once."""


class AverageSpec(Document):
    """A running mean of the weights, beside them."""

    decay: float = Field(default=0.999, gt=0, lt=1)
    """What one applied step leaves of the mean."""
    export: bool = False
    """Whether the mean is exported in place of the last weights."""

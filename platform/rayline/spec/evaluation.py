"""EvaluationSpec: how a run is measured on text that it does not learn."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from rayline.spec.document import Document


class EvaluationSpec(Document):
    """Validation loss and perplexity over held-out text, without gradients, while training goes
    on. It is read as `data` says: its kind, sequence_tokens and packing hold for it too."""

    files: list[str] | None = Field(default=None, min_length=1)
    """Files or addresses, as data.files may be, that are not among the training data."""
    fraction: float | None = Field(default=None, gt=0, lt=1)
    """Share of the training data's documents that is held out instead, in (0, 1). The hash of a
    document's content decides: wherever it stands, and whatever is added, it stays on its side."""
    every_steps: int = Field(ge=1)
    """Optimizer steps between two evaluations; the last step of the run is followed by one too."""
    sequences: int | None = Field(default=None, ge=1)
    """Sequences that one evaluation takes, the first of the held-out text; null takes all."""
    at_start: bool = True
    """Evaluate before the first step as well: what the loss was without any training."""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.files is None) == (self.fraction is None):
            raise ValueError("give exactly one of files and fraction")
        return self

    def is_due(self, step: int, last_step: int) -> bool:
        """Whether an evaluation follows `step` (from 1; 0 is before the first) of a run whose last
        step is `last_step`."""
        if step == 0:
            return self.at_start
        return step % self.every_steps == 0 or step == last_step

"""EvaluationSpec: how a run is measured on text that it does not learn."""

from __future__ import annotations

from pydantic import Field

from rayline.spec.document import Document


class EvaluationSpec(Document):
    """Validation loss and perplexity over held-out files, without gradients, while training goes
    on. The files are read as `data` says: its kind and its sequence_tokens hold for them too."""

    files: list[str] = Field(min_length=1)
    """Paths of .jsonl or .txt files that are not in data.files."""
    every_steps: int = Field(ge=1)
    """Optimizer steps between two evaluations; the last step of the run is followed by one too."""
    sequences: int | None = Field(default=None, ge=1)
    """Sequences that one evaluation takes, from the beginning of the files; null takes all."""
    at_start: bool = True
    """Evaluate before the first step as well: what the loss was without any training."""

    def is_due(self, step: int, last_step: int) -> bool:
        """Whether an evaluation follows `step` (from 1; 0 is before the first) of a run whose last
        step is `last_step`."""
        if step == 0:
            return self.at_start
        return step % self.every_steps == 0 or step == last_step

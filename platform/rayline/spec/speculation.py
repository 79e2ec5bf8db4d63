"""SpeculationSpec: tokens guessed ahead and checked in one step of the model."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from rayline.spec.document import Document
from rayline.spec.model import ModelRef

SpeculationMethod = Literal["ngram", "draft", "eagle", "eagle3", "medusa", "mtp"]
_HEADS = frozenset({"draft", "eagle", "eagle3", "medusa"})
"""Methods that guess with weights of their own; mtp's lie in the model's own checkpoint."""


class SpeculationSpec(Document):
    """How the next tokens are guessed. The model itself checks every guess, so that what is said
    stays the same (greedy) or comes with the same probabilities (sampled); only time is won."""

    method: SpeculationMethod
    """ngram: what followed the same few tokens in prompt and answer so far; no weights. draft: a
    small model with the same vocabulary. eagle, eagle3, medusa: heads trained for this model. mtp:
    heads that the model's own checkpoint brings (DeepSeek, Qwen3-Next)."""
    model: ModelRef | None = None
    """The draft model or the heads; none for ngram and mtp."""
    tokens: int = Field(default=4, ge=1, le=16)
    """Tokens guessed at once. What is guessed wrong is computed for nothing: more pays for long
    repetitions, fewer for free text and many requests at once."""
    ngram_tokens: int = Field(default=4, ge=2, le=16)
    """Longest run of tokens that ngram looks for; it goes down to 2."""

    @model_validator(mode="after")
    def _has_what_it_guesses_with(self) -> Self:
        if self.method in _HEADS and self.model is None:
            raise ValueError(
                f"method {self.method} guesses with weights of its own: "
                "give model, such as {directory: models/draft}"
            )
        if self.method not in _HEADS and self.model is not None:
            raise ValueError(f"method {self.method} needs no model: remove {self.model}")
        return self

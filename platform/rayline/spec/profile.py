"""ProfileSpec: which steps are traced."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from rayline.errors import SpecError
from rayline.spec.document import Document


class ProfileSpec(Document):
    """Steps that torch.profiler records, on every rank; a traced step is slower than others."""

    first_step: int = Field(ge=1)
    """First traced step. The very first steps of a run warm up and say little."""
    last_step: int = Field(ge=1)
    """Last traced step. A few are enough: a trace grows by some MiB with each."""

    @model_validator(mode="after")
    def _forward(self) -> Self:
        if self.last_step < self.first_step:
            raise ValueError(f"last_step {self.last_step} lies before first_step {self.first_step}")
        return self

    def holds(self, step: int) -> bool:
        """Whether `step` is traced."""
        return self.first_step <= step <= self.last_step


def profile_overrides(text: str) -> list[str]:
    """The short form FIRST:LAST, such as 10:15, as overrides of a job spec. Raises SpecError."""
    first, colon, last = text.partition(":")
    if not colon or not first.isdecimal() or not last.isdecimal():
        raise SpecError(
            "--profile",
            "does not name steps",
            value=text,
            allowed="FIRST:LAST, such as 10:15",
        )
    return [f"profile.first_step={first}", f"profile.last_step={last}"]

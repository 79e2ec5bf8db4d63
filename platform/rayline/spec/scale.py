"""ScaleSpec: how many replicas there are, and what makes more."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from rayline.spec.document import Document


class ScaleSpec(Document):
    """How many replicas there are, and what makes more."""

    min_replicas: int = Field(default=1, ge=1)
    """Fewest replicas."""
    max_replicas: int = Field(default=1, ge=1)
    """Most replicas."""
    target_ongoing_requests: int = Field(default=16, ge=1)
    """Requests in flight per replica above which another one is started."""
    upscale_delay_s: float = Field(default=5.0, ge=0)
    """How long the load must last before replicas are added."""
    downscale_delay_s: float = Field(default=120.0, ge=0)
    """How long it must be gone before replicas are taken away."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max_replicas < self.min_replicas:
            raise ValueError(
                f"max_replicas {self.max_replicas} is below min_replicas {self.min_replicas}"
            )
        return self

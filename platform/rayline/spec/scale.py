"""ScaleSpec: how many replicas there are, and what makes more."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from rayline.spec.document import Document


class ScaleSpec(Document):
    """How many replicas one version has, and what makes more. Every target that is not null is
    watched, and the one that asks for most replicas decides."""

    min_replicas: int = Field(default=1, ge=0)
    """Fewest replicas; 0 lets a model that nobody asks for idle_s give everything back."""
    max_replicas: int = Field(default=1, ge=1)
    """Most replicas."""
    target_ongoing_requests: int = Field(default=16, ge=1)
    """Requests in flight per replica, computed or waiting, above which another one is started."""
    waiting_per_replica: float | None = Field(default=2.0, gt=0)
    """Requests per replica that its engine has no place for, above which another one is started."""
    kv_use: float | None = Field(default=0.9, gt=0, le=1)
    """Share of the paged KV cache in use, mean over the replicas, above which another one is
    started."""
    ttft_ms: float | None = Field(default=None, gt=0)
    """Time to the first token that nine of ten requests should have at most."""
    tpot_ms: float | None = Field(default=None, gt=0)
    """Time per further token that nine of ten requests should have at most."""
    upscale_delay_s: float = Field(default=5.0, ge=0)
    """How long the load must last before replicas are added."""
    downscale_delay_s: float = Field(default=120.0, ge=0)
    """How long it must be gone before replicas are taken away."""
    idle_s: float = Field(default=300.0, ge=0)
    """How long nobody must have asked before the last replica goes, where min_replicas is 0."""
    hold_s: float = Field(default=180.0, gt=0)
    """How long a request that finds no replica is held while one starts; then it is refused."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.max_replicas < self.min_replicas:
            raise ValueError(
                f"max_replicas {self.max_replicas} is below min_replicas {self.min_replicas}"
            )
        return self

"""ServeSpec: everything that one deployment is made of."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from rayline.spec.document import Document
from rayline.spec.gateway import GatewaySpec
from rayline.spec.job import TrackingSpec
from rayline.spec.model import ModelRef
from rayline.spec.rehearsal import RehearsalSpec
from rayline.spec.requests import RequestLimits
from rayline.spec.rollout import RolloutSpec
from rayline.spec.scale import ScaleSpec
from rayline.spec.serve_engine import EngineSpec


class ServeSpec(Document):
    """One OpenAI-compatible deployment of one model."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
    """Name of the app, and the model id that clients send."""
    model: ModelRef
    """What is served."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """auto: GPUs where the cluster has any."""
    gateway: GatewaySpec = GatewaySpec()
    limits: RequestLimits = RequestLimits()
    scale: ScaleSpec = ScaleSpec()
    engine: EngineSpec = EngineSpec()
    cpus_per_replica: float = Field(default=1.0, gt=0)
    """Ray CPUs held by one replica."""
    max_ongoing_requests: int = Field(default=64, ge=1)
    """Requests that one replica accepts at once."""
    drain_s: float = Field(default=60.0, ge=0)
    """How long a replica that is taken away may finish its streams."""
    health_timeout_s: float = Field(default=11.0, ge=1)
    """Longest time the engine may leave a health check unanswered (it answers between two steps)
    before its replica is replaced."""
    ready_timeout_s: float = Field(default=600.0, gt=0)
    """Longest wait until the deployment has generated a token."""
    rollout: RolloutSpec = RolloutSpec()
    rehearsal: RehearsalSpec | None = None
    """An engine that answers by rule in place of the model, which is named and not opened."""
    tracking: TrackingSpec = TrackingSpec()

    @model_validator(mode="after")
    def _routable(self) -> Self:
        self.engine.check_names(self.name)
        if self.scale.target_ongoing_requests > self.max_ongoing_requests:
            raise ValueError(
                f"scale.target_ongoing_requests {self.scale.target_ongoing_requests} is above "
                f"max_ongoing_requests {self.max_ongoing_requests}: it would never scale"
            )
        return self

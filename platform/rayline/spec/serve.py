"""ServeSpec: everything that one deployment is made of."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from rayline.spec.document import Document
from rayline.spec.job import TrackingSpec
from rayline.spec.model import ModelRef


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


class EngineSpec(Document):
    """vLLM's engine arguments that a deployment may set; names are vLLM's own."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of weights and computation; auto takes float32 on CPU, the model's own on GPU."""
    max_model_len: int = Field(default=2048, ge=16)
    """Longest prompt and answer together, in tokens."""
    max_num_seqs: int = Field(default=32, ge=1)
    """Most sequences that the engine computes at once."""
    tensor_parallel_size: int = Field(default=1, ge=1)
    """Devices that one replica's layers are split over."""
    kv_cache_gib: float = Field(default=1.0, gt=0)
    """Memory for the paged KV cache on CPU, in GiB (a GPU uses gpu_memory_utilization)."""
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    """Share of a GPU's memory that the engine takes."""
    enforce_eager: bool | None = None
    """True computes without a compiled graph: ready sooner, slower on GPUs. null: true on CPU,
    where compiling asks for a C++ compiler and wins little; false on GPU."""
    seed: int = 0
    """Seed of sampling."""


class ServeSpec(Document):
    """One OpenAI-compatible deployment of one model."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
    """Name of the app, and the model id that clients send."""
    model: ModelRef
    """What is served."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """auto: GPUs where the cluster has any."""
    host: str = "127.0.0.1"
    """Address that HTTP listens on; 0.0.0.0 opens it to the network."""
    port: int = Field(default=8000, ge=1, le=65535)
    """TCP port that HTTP listens on."""
    scale: ScaleSpec = ScaleSpec()
    engine: EngineSpec = EngineSpec()
    cpus_per_replica: float = Field(default=1.0, gt=0)
    """Ray CPUs held by one replica."""
    gateway_replicas: int = Field(default=1, ge=1)
    """Processes that check requests and pass answers on; they hold no CPU of the cluster's."""
    max_ongoing_requests: int = Field(default=64, ge=1)
    """Requests that one replica accepts at once."""
    max_queued_requests: int = Field(default=256, ge=1)
    """Requests that wait for a replica; more are refused with 503."""
    drain_s: float = Field(default=60.0, ge=0)
    """How long a replica that is taken away may finish its streams."""
    health_timeout_s: float = Field(default=15.0, ge=1)
    """Longest time the engine may leave a health check unanswered (it answers between two steps)
    before its replica is replaced."""
    ready_timeout_s: float = Field(default=600.0, gt=0)
    """Longest wait until the deployment has generated a token."""
    tracking: TrackingSpec = TrackingSpec()

    @model_validator(mode="after")
    def _routable(self) -> Self:
        if self.scale.target_ongoing_requests > self.max_ongoing_requests:
            raise ValueError(
                f"scale.target_ongoing_requests {self.scale.target_ongoing_requests} is above "
                f"max_ongoing_requests {self.max_ongoing_requests}: it would never scale"
            )
        return self

"""KubernetesSpec: what only a cluster on Kubernetes has, and what it is there to run."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from rayline.spec.document import Document
from rayline.spec.serve import ServeSpec


class RunSpec(Document):
    """A job that the cluster is made for and goes with."""

    entrypoint: str = Field(min_length=1)
    """The command, run in the image's working directory."""
    start_timeout_s: int = Field(default=900, ge=30)
    """Longest wait until the pods run and the job starts, in seconds."""
    keep_s: int = Field(default=600, ge=0)
    """How long the job's record stays after its end, in seconds."""


class KubernetesSpec(Document):
    """How pods are scheduled. Without `run` and `serve` the cluster stands until it is deleted."""

    flavor: Literal["plain", "gke", "eks", "aks"] = "plain"
    """Whose Kubernetes, which decides how nodes and networks are asked for."""
    namespace: str | None = None
    """Namespace of all that is made; null takes kubectl's current one."""
    queue: str | None = None
    """Kueue's LocalQueue: the pods start together once the quota has room. Not with scaling."""
    gang_scheduler: Literal["volcano"] | None = None
    """volcano starts a cluster's smallest size all at once or not at all."""
    gang_queue: str | None = None
    """Volcano's queue."""
    auth_secret: str | None = None
    """Secret whose key auth_token is Ray's token; null lets KubeRay make one."""
    run: RunSpec | None = None
    """Makes a RayJob."""
    serve: ServeSpec | None = None
    """Makes a RayService of one deployment, with the gateway in front."""

    @model_validator(mode="after")
    def _one_purpose(self) -> Self:
        if self.run is not None and self.serve is not None:
            raise ValueError("run and serve exclude each other: one cluster, one purpose")
        if self.queue is not None and self.gang_scheduler is not None:
            raise ValueError("queue (Kueue) and gang_scheduler exclude each other")
        if self.gang_queue is not None and self.gang_scheduler is None:
            raise ValueError("gang_queue needs gang_scheduler")
        return self

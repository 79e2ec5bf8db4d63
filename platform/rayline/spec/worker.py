"""What a worker is told at its start, and what it tells at every step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rayline.spec.plan import Coordinate


@dataclass(frozen=True, slots=True)
class WorkerContext:
    """One rank's place in the gang; made by the gang, read by train/."""

    rank: int
    world_size: int
    local_rank: int
    """Number of this worker among those on its node: the index of its GPU there."""
    coordinate: Coordinate
    master_address: str
    """Host on which rank 0 listens for the rendezvous."""
    master_port: int
    """Free TCP port on that host, found when the gang was started."""
    device: Literal["cpu", "cuda"]
    collective_timeout_s: float = 600.0
    """Longest that one collective may take before it is an error."""


@dataclass(frozen=True, slots=True)
class StepReport:
    """The one thing that flows back every step, from rank 0."""

    step: int
    """Steps done, counted from 1."""
    loss: float
    """Mean over all target tokens of the global batch."""
    grad_norm: float
    """Global 2-norm of the mean gradient, before clipping."""
    lr: float
    tokens: int
    """Target tokens that the loss was taken over."""
    processed_tokens: int
    """Tokens that went through the model: global batch x sequence length."""
    seconds: float
    """Wall time of the step, data included."""
    memory_bytes: int
    """Peak memory of the reporting worker: GPU memory allocated, or resident memory on CPU."""
    skipped: str = ""
    """Why no rank applied the step; empty where all did."""

    @property
    def tokens_per_s(self) -> float:
        """Processed tokens in a second, over all workers."""
        return self.processed_tokens / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What an export holds and how far its logits are from the trained model's."""

    directory: str
    """Folder in Hugging Face's layout."""
    step: int
    parameters: int
    logit_difference: float
    """Largest absolute difference over the probed positions, over the largest absolute logit."""
    logit_tolerance: float
    """What it had to stay below."""
    probed_tokens: int
    sha256: dict[str, str]
    """File name to SHA-256, for every file of the folder."""


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What one start of a job came to; the same on every rank."""

    first_step: int
    """The step it began with: 1, or one past the checkpoint it resumed from."""
    last_step: int
    """Steps done."""
    finished: bool
    """True once `steps` of the spec are done; False after stop_after_step."""
    checkpoint: str | None
    """Folder of the newest checkpoint."""
    export: ExportReport | None

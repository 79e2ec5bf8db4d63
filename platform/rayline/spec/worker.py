"""What a worker is told at its start, and what it tells at every step."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from typing import Literal

from pydantic import TypeAdapter

from rayline.spec.plan import Coordinate


@dataclass(frozen=True, slots=True)
class SnapshotMark:
    """Names a snapshot of one rank that is whole."""

    step: int
    epoch: int
    """Of the gang that wrote it."""


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
    epoch: int = 1
    """How often the gang began, this time included; what an earlier one left over is told by it."""
    has_stepped: bool = False
    """Whether an earlier beginning of this start of the job finished a step: what stands on storage
    is then its own."""
    snapshot_area: str | None = None
    """File in memory where this rank keeps its snapshots; None where it keeps none."""
    snapshots_sent: bool = False
    """Whether each snapshot is sent to another node, and the next one waits until it was."""
    resume_step: int | None = None
    """Step of the snapshot there that every rank goes on from; None where there is none."""
    collective_timeout_s: float = 600.0
    """Longest that one collective may take before it is an error."""
    workers_on_node: int = 1
    """Ranks that share this one's node, itself among them."""


@dataclass(frozen=True, slots=True)
class Yardstick:
    """What the gang's speed is measured against; made in the worker, read by train/."""

    model_flops_per_token: int
    """Floating point operations of forward and backward for one token, as the planner counts."""
    device_peak_flops_per_s: float | None
    """The most that one GPU can do, as its maker states; None where that is not known, and on CPU,
    where it is measured at the start."""


@dataclass(frozen=True, slots=True)
class StepParts:
    """Where the wall time of one step went on rank 0, in seconds; all but communication_s are
    read from one clock, without gaps, and add up to the step."""

    data_s: float = 0.0
    """Drawing and putting together the batch."""
    engine_s: float = 0.0
    """Forward, backward, optimizer, with all communication."""
    communication_s: float | None = None
    """Part of engine_s in which collectives, sends or receives were under way and this rank
    computed nothing: waiting for slower ranks and, in a pipeline, for other stages counts.
    Communication hidden behind computation does not. Taken from torch.profiler (see
    `rayline.train.profile`), the mean of the profiled steps that end with this one; None on steps
    that end no profile."""
    evaluation_s: float = 0.0
    checkpoint_s: float = 0.0
    """Until the checkpoint was whole on disk."""
    profile_s: float = 0.0
    """Starting the profiler, reading what it found, and writing the trace."""

    @property
    def compute_s(self) -> float | None:
        """engine_s without communication_s; None where that was not measured."""
        return None if self.communication_s is None else self.engine_s - self.communication_s

    @property
    def total_s(self) -> float:
        """The whole step."""
        measuring_s = self.evaluation_s + self.checkpoint_s + self.profile_s
        return self.data_s + self.engine_s + measuring_s


@dataclass(frozen=True, slots=True)
class RoutingReport:
    """How evenly the tokens of a step's global batch went to the experts of a mixture."""

    max_load: float
    """Choices of the expert that was chosen most, over the mean of its layer's experts; of all
    layers the largest. 1 is even."""
    balance_loss: float | None = None
    """Mean over sequences and layers of the balance loss (see `rayline.parallel.routing`), before
    its coefficient: the number of experts that a token is sent to where all are chosen alike. None
    without objective.router_aux_loss."""
    choices: int = 0
    """Choices that the routers of all layers made: tokens x experts of a token x layers."""
    dropped: int | None = None
    """How many of them were dropped, the expert having been full; None without
    objective.expert_capacity_factor."""

    @property
    def dropped_fraction(self) -> float | None:
        """Share of the choices that was dropped, 0..1; None where none can be."""
        return None if self.dropped is None else self.dropped / max(1, self.choices)


@dataclass(frozen=True, slots=True)
class EvalReport:
    """One evaluation over the held-out sequences; the same under every plan but for rounding."""

    step: int
    """Steps done before it; 0 at the start."""
    loss: float
    """Mean over all target tokens of the held-out sequences."""
    tokens: int
    """Those target tokens."""
    sequences: int
    seconds: float
    """Wall time."""

    @property
    def perplexity(self) -> float:
        """exp(loss); infinite where that is beyond float64."""
        return math.exp(self.loss) if self.loss < _LARGEST_EXPONENT else math.inf


_LARGEST_EXPONENT = 709.0
"""exp of more overflows float64."""


@dataclass(frozen=True, slots=True)
class StepReport:
    """The one thing that flows back every step, from rank 0, once the step's evaluation and
    checkpoint, where it has them, are done too."""

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
    """Wall time of the step: all its parts."""
    memory_bytes: int
    """Peak memory of the reporting worker: GPU memory allocated, or resident memory on CPU."""
    at_s: float = 0.0
    """Unix time at which it was made."""
    skipped: str = ""
    """Why no rank applied the step; empty where all did."""
    workers: int = 1
    """Workers of the gang; each has one device."""
    mfu: float | None = None
    """Model FLOPs utilization, 0..1: the operations that the model needs for the processed tokens
    over what all devices could have done meanwhile (Chowdhery et al. 2022, appendix B), in the time
    of training alone; None where the devices' peak is not known."""
    routing: RoutingReport | None = None
    """How tokens went to experts; None for a dense model."""
    parts: StepParts = StepParts()
    evaluations: tuple[EvalReport, ...] = ()
    """Evaluations since the last report: the one after this step, and in a run's first report the
    one before any training."""

    @property
    def training_s(self) -> float:
        """Wall time of the step without evaluation, checkpoint and profiling."""
        parts = self.parts
        return self.seconds - parts.evaluation_s - parts.checkpoint_s - parts.profile_s

    @property
    def tokens_per_s(self) -> float:
        """Processed tokens in a second of training, over all workers."""
        return self.processed_tokens / self.training_s if self.training_s > 0 else 0.0

    @property
    def tokens_per_s_per_device(self) -> float:
        """Processed tokens in a second of training, of one worker."""
        return self.tokens_per_s / self.workers

    def to_json(self) -> str:
        """One line that `from_json` reads back to an equal value."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(line: str) -> StepReport:
        """The inverse of `to_json`. Raises pydantic.ValidationError."""
        return _STEP_REPORT.validate_python(json.loads(line))


_STEP_REPORT = TypeAdapter(StepReport)
"""Made once: a recovery reads hundreds of reports."""


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
    """What one start of a job came to; the same on every rank, but for the trace."""

    first_step: int
    """The step it began with: 1, or one past the checkpoint it resumed from."""
    last_step: int
    """Steps done."""
    finished: bool
    """True once `steps` of the spec are done; False after stop_after_step."""
    checkpoint: str | None
    """Folder of the newest checkpoint."""
    export: ExportReport | None
    peak_memory_bytes: tuple[int, ...] = ()
    """Each rank's peak memory up to the last step, in the order of ranks: GPU memory allocated, or
    resident memory on CPU."""
    trace: str | None = None
    """This rank's file of the profiled steps, a gzipped Chrome trace; None where none were. Those
    of the other ranks lie beside it."""

"""JobSpec: everything that one training run is made of."""

from __future__ import annotations

from pathlib import PurePath
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from rayline.errors import SpecError
from rayline.spec.compilation import CompileSpec
from rayline.spec.data import DataSpec
from rayline.spec.document import Document
from rayline.spec.engines import check_engine, why_engine_cannot
from rayline.spec.evaluation import EvaluationSpec
from rayline.spec.model import ModelRef, ModelShape
from rayline.spec.offload import OffloadSpec
from rayline.spec.optim import AnyOptimSpec
from rayline.spec.plan import ParallelPlan
from rayline.spec.profile import ProfileSpec
from rayline.spec.recovery import RecoverySpec
from rayline.spec.stages import SCHEDULES
from rayline.spec.step import AverageSpec, BatchSpec, GuardSpec, ObjectiveSpec


class CheckpointSpec(Document):
    """When state is kept, where, and how much of it."""

    directory: str | None = None
    """Folder of the checkpoints, which every worker must reach: a path, or any address that fsspec
    knows, such as s3://bucket/runs/{name}; {name} stands for the job's name. Endpoints and
    credentials come from the environment. null: checkpoints, in output_dir."""
    every_steps: int | None = Field(default=None, ge=1)
    """Steps between checkpoints; null keeps only the one at the end."""
    keep: int = Field(default=2, ge=1)
    """Newest intact checkpoints that stay on disk."""
    resume: Literal["auto", "never"] = "auto"
    """auto: go on from the newest intact checkpoint of this job, if there is one. never: refuse to
    start where a checkpoint stands."""
    write_mb_per_s: float | None = Field(default=None, gt=0)
    """Most that one node writes of checkpoints, in 10^6 bytes a second; null as fast as storage
    takes them."""
    give_up_after_s: float = Field(default=900.0, gt=0)
    """Longest that storage may take for one worker's part of a checkpoint that is written while
    training goes on; after that the checkpoint is given up, and the run says so."""

    @field_validator("directory")
    @classmethod
    def _reached_by_all(cls, directory: str | None) -> str | None:
        if directory is not None and directory.startswith("memory://"):
            raise ValueError("memory:// is seen by one process only; use a path, s3://, gs://, ...")
        if directory is not None and not directory.rpartition("://")[2].strip("/"):
            raise ValueError("names no folder; such as /mnt/shared/runs or s3://bucket/runs/{name}")
        return directory

    @property
    def write_bytes_per_s(self) -> float | None:
        """write_mb_per_s in bytes."""
        return None if self.write_mb_per_s is None else self.write_mb_per_s * 1e6


class ResourceSpec(Document):
    """What each worker holds and how long the gang may wait for it."""

    device: Literal["auto", "cpu", "gpu"] = "auto"
    """auto: GPUs where the cluster has any."""
    cpus_per_worker: float = Field(default=1.0, ge=0)
    """Ray CPUs held by one worker; below 1 lets several tiny workers share a core."""
    gpus_per_worker: float = Field(default=1.0, gt=0)
    """Ray GPUs held by one worker where device is gpu."""
    custom: dict[str, float] = {}
    """Further Ray resources that one worker holds, by name."""
    labels: dict[str, str] = {}
    """Labels that every node of the gang bears, such as `ray.io/accelerator-type: H100`."""
    placement_timeout_s: float = Field(default=120.0, gt=0)
    """Longest wait for the placement group; afterwards the error says what was wanted and what each
    node has."""


class TrackingSpec(Document):
    """Where runs are recorded."""

    uri: str = "sqlite:///mlflow.db"
    """MLflow tracking URI; the default is one local file, no server."""
    experiment: str = "rayline"
    """MLflow experiment that the run belongs to."""
    when_away: Literal["keep", "refuse"] = "keep"
    """What a job does where the server does not answer at its start. keep: it runs, and what it
    records is kept in its folder and sent once the server answers. refuse: it ends at once."""
    sinks: list[Literal["tensorboard", "wandb", "swanlab"]] = Field(default_factory=list)
    """Where the metrics go besides MLflow."""


class ExportSpec(Document):
    """What becomes of the trained weights."""

    register_as: str | None = None
    """Name in MLflow's registry; null exports without registering."""
    alias: str = "latest"
    """Alias that is moved to the new version."""
    logits_tolerance: float | None = Field(default=None, gt=0)
    """Largest difference between the trained model's logits and the exported one's, relative to
    the largest logit; null takes 1e-4 for fp32, 3e-2 for bf16 and 1e-2 for fp16."""


class JobSpec(Document):
    """One training job: model, data, step, plan and what becomes of the result."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
    """Name of the run, in MLflow and in paths."""
    model: ModelRef
    """What is trained."""
    init: Literal["weights", "random"] = "weights"
    """weights: start from the model's weights. random: from its config alone, drawn from seed."""
    engine: Literal["native", "deepspeed"] = "native"
    """native: PyTorch device mesh, FSDP2 and pipelining. deepspeed: ZeRO 0 to 3, AutoTP, and
    PipelineModule with ZeRO 0 or 1."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """bf16 and fp16 compute in 16 bits and keep weights, gradients' sums and optimizer states in
    fp32; fp16, for GPUs without bf16, scales the loss and skips steps whose gradients overflow."""
    seed: int = Field(default=0, ge=0)
    """Draws the order of the data and random weights."""
    steps: int = Field(ge=1)
    """Optimizer steps of the whole run; the learning rate's schedule spans them."""
    stop_after_step: int | None = Field(default=None, ge=1)
    """Stop cleanly, with a checkpoint, once this step is done; resume later."""
    data: DataSpec
    batch: BatchSpec
    optim: AnyOptimSpec
    objective: ObjectiveSpec = ObjectiveSpec()
    guard: GuardSpec = GuardSpec()
    ema: AverageSpec | None = None
    """A running mean of the weights; null keeps none."""
    recompute: Literal["none", "selective", "full"] = "none"
    """What the backward pass computes again instead of keeping it. full: each layer, from its
    input. selective: all but products of matrices and attention."""
    compile: CompileSpec | None = None
    """How layers are compiled; null runs them as they are. Engine native."""
    offload: OffloadSpec = OffloadSpec()
    plan: ParallelPlan = ParallelPlan()
    """Sizes of the axes, or auto: the planner's choice on the cluster that the job finds."""
    checkpoint: CheckpointSpec = CheckpointSpec()
    recovery: RecoverySpec = RecoverySpec()
    resources: ResourceSpec = ResourceSpec()
    tracking: TrackingSpec = TrackingSpec()
    evaluation: EvaluationSpec | None = None
    """Held-out text to measure on while training; null measures nothing."""
    profile: ProfileSpec | None = None
    """Steps to trace; null traces none."""
    export: ExportSpec = ExportSpec()
    output_dir: str = "runs/{name}"
    """Folder of logs, the exported model and, without checkpoint.directory, checkpoints; {name}
    stands for the job's name. On a cluster of several nodes it must be on storage that all of them
    see."""

    @field_validator("plan", mode="before", json_schema_input_type=ParallelPlan | Literal["auto"])
    @classmethod
    def _auto(cls, plan: object) -> object:
        return {"auto": True} if plan == "auto" else plan

    @field_validator("precision", mode="before")
    @classmethod
    def _no_fp8(cls, precision: object) -> object:
        if precision == "fp8":
            raise ValueError("fp8 is not offered; use bf16, with compile where speed is wanted")
        return precision

    @model_validator(mode="after")
    def _engine_can(self) -> Self:
        reason = why_engine_cannot(self)
        if reason is not None:
            raise ValueError(reason)
        if self.stop_after_step is not None and self.stop_after_step > self.steps:
            raise ValueError(
                f"stop_after_step {self.stop_after_step} lies after steps {self.steps}"
            )
        if self.profile is not None and self.profile.first_step > self.steps:
            raise ValueError(
                f"profile.first_step {self.profile.first_step} lies after steps {self.steps}"
            )
        return self

    @model_validator(mode="after")
    def _backward_can(self) -> Self:
        plan = self.plan
        splits = plan.pipeline > 1 and SCHEDULES[plan.schedule].splits_backward
        if splits and self.recompute == "selective":
            raise ValueError(
                f"recompute selective can compute a layer again once, but plan.schedule "
                f"{plan.schedule} goes back through it twice; use recompute: full, or "
                "plan.schedule: interleaved"
            )
        rings = plan.context > 1 and plan.context_method == "ring"
        if rings and self.recompute == "selective":
            raise ValueError(
                "recompute selective keeps products of matrices, and with plan.context_method ring "
                "all scores of the attention among them; use recompute: full, or "
                "plan.context_method: ulysses"
            )
        return self

    @property
    def directory(self) -> str:
        """output_dir with the name filled in."""
        return self.output_dir.replace("{name}", self.name)

    @property
    def checkpoint_directory(self) -> str:
        """Path or address of the checkpoints: checkpoint.directory with the name filled in, or
        `checkpoints` in output_dir."""
        own = self.checkpoint.directory
        if own is None:
            return str(PurePath(self.directory) / "checkpoints")
        return own.replace("{name}", self.name)

    @property
    def last_step(self) -> int:
        """The step after which this start of the job ends."""
        return self.stop_after_step or self.steps

    @property
    def evaluation_data(self) -> DataSpec | None:
        """What the held-out text is read from, as the training data is: its own files, or the
        training data where a fraction of that is held out; None without an evaluation."""
        if self.evaluation is None:
            return None
        if self.evaluation.files is None:
            return self.data
        return self.data.model_copy(update={"files": self.evaluation.files, "mixture": None})

    @property
    def held_out_fraction(self) -> float:
        """Share of the documents of `data` that training leaves to the evaluation."""
        return (self.evaluation and self.evaluation.fraction) or 0.0

    @property
    def token_directory(self) -> str:
        """Folder of the token shards: data.cache_dir, or `.tokens` beside output_dir."""
        return self.data.cache_dir or str(PurePath(self.directory).parent / ".tokens")

    @property
    def sequences_per_microbatch(self) -> int:
        """Sequences that one worker computes at a time, once the batch is whole."""
        return self.batch.sequences // (self.plan.data * self.plan.microbatches)

    def check(self, model: ModelShape, workers_per_node: int | None = None) -> None:
        """Refuse what the plan, the model and the batch cannot do together. Raises SpecError."""
        self.plan.check(model, self.batch.sequences, workers_per_node)
        check_engine(self, model)
        if not model.experts:
            self._check_dense()
        rows = self.plan.data * self.plan.microbatches
        self.batch.check_parts(rows, f"{self.plan.data} x {self.plan.microbatches}")
        parts = self.plan.sequence_divisor
        if self.data.sequence_tokens % parts:
            raise SpecError(
                "data.sequence_tokens",
                f"the plan cuts each sequence into {parts} equal parts",
                value=self.data.sequence_tokens,
                allowed=f"a multiple of {parts}",
            )

    def _check_dense(self) -> None:
        """Refuse what only a mixture of experts has."""
        objective = self.objective
        if objective.router_aux_loss:
            raise SpecError(
                "objective.router_aux_loss",
                "the model is dense: it has no routers to even out",
                value=objective.router_aux_loss,
                allowed="0",
                fix="--set objective.router_aux_loss=0",
            )
        if objective.expert_capacity_factor is not None:
            raise SpecError(
                "objective.expert_capacity_factor",
                "the model is dense: it has no experts that could be full",
                value=objective.expert_capacity_factor,
                allowed="null",
                fix="--set objective.expert_capacity_factor=null",
            )

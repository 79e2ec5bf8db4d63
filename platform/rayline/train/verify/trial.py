"""Trial: one plan to be run as ranks and compared, and what they tell of it. Values only, so that
the driver needs no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayline.errors import SpecError, meant
from rayline.spec import AXES, JobSpec, ParallelPlan, StepReport

STEPS = 5
"""Optimizer steps that are compared."""
RESUME_AFTER = 3
"""The resumed run stops, saves and is started again after this step."""


@dataclass(frozen=True, slots=True)
class Trial:
    """What the ranks of one plan are to do."""

    job: JobSpec
    """Its plan is the one on trial; its paths are absolute."""
    model: Path
    """Folder with config, tokenizer and weights that all begin with."""
    folder: Path
    """Where rank 0 leaves gradients and ports, and all leave checkpoints; empty before."""
    build: Callable[..., Any] | None = None
    """rayline.train.build.EngineBuilder in place of the spec's own engine."""
    collective_timeout_s: float = 300.0
    """A collective that one rank never enters is an error after this."""

    @property
    def start(self) -> Path:
        """File of the whole weights that the engine begins with."""
        return self.folder / "start.safetensors"

    @property
    def gradients(self) -> Path:
        """File of the whole gradients of step 1."""
        return self.folder / "gradients.safetensors"

    def run_job(self, run: str, stop_after_step: int) -> JobSpec:
        """The job of one run, `unbroken` or `resumed`, stopped after a step with a checkpoint."""
        return verified_job(self.job).changed(
            {"output_dir": str(self.folder / run), "stop_after_step": stop_after_step}
        )

    def checkpoint(self, run: str) -> Path:
        """Folder of a run's last checkpoint."""
        return self.folder / run / "checkpoints" / f"step-{STEPS:08d}"


@dataclass(frozen=True, slots=True)
class Lived:
    """What rank 0 saw of a trial; empty on the others."""

    unbroken: tuple[StepReport, ...]
    """Of steps 1 to STEPS."""
    resumed: tuple[StepReport, ...]
    """The same steps, of a run that was started twice."""


@dataclass(frozen=True, slots=True)
class ReferenceResult:
    """What the driver and `measure` need to know of the plain training besides its tensors."""

    losses: tuple[float, ...]
    """By step: mean over the target tokens of the global batch, before the step."""
    grad_norms: tuple[float, ...]
    """By step: global 2-norm of that mean's gradient, before clipping."""
    loss_noise: tuple[float, ...]
    """By step: how far the second run's loss is from the first's."""
    grad_norm_noise: tuple[float, ...]
    gradient_noise: dict[str, float]
    """By parameter: 2-norm of the difference between the two runs' gradients of step 1."""
    weight_noise: dict[str, float]
    """By parameter: 2-norm of the difference between the two runs' weights after all steps."""


def verified_job(job: JobSpec) -> JobSpec:
    """`job` as it is run here: it never reaches its end, so nothing is exported, and all its data
    is trained on."""
    return job.changed(
        {
            "steps": max(job.steps, STEPS + 1),
            "stop_after_step": None,
            "init": "weights",
            "evaluation": None,
            "checkpoint": {"every_steps": None, "resume": "auto"},
        }
    )


def check_followed(job: JobSpec) -> None:
    """Refuse what the plain training does not do, so that nothing is compared with something else.
    Called by the driver. Raises SpecError."""
    if job.precision == "fp16":
        raise SpecError(
            "precision",
            "steps whose gradients overflow at the scale of a loss are skipped, which the plain "
            "training that a plan is verified against does not follow",
            value=job.precision,
            allowed="fp32, bf16",
            fix="--set precision=fp32",
        )
    for field, value, without in (
        ("router_aux_loss", job.objective.router_aux_loss or None, "0"),
        ("expert_capacity_factor", job.objective.expert_capacity_factor, "null"),
    ):
        if value is not None:
            raise SpecError(
                f"objective.{field}",
                "not done by the plain training that a plan is verified against",
                value=value,
                allowed=without,
                fix=f"--set objective.{field}={without}",
            )


def plan_axes(plan: ParallelPlan) -> list[str]:
    """Names of the axes of size above one."""
    return [axis for axis in (*AXES, "expert") if getattr(plan, axis) > 1]


def alone(plan: ParallelPlan, axis: str) -> ParallelPlan:
    """The plan with `axis` only; `one worker` leaves none. Microbatches and ZeRO stage stay, so the
    global batch does too; what belongs to other axes goes with them. The experts' axis lies in the
    data axis and brings as much of it. Raises SpecError where the plan has no such axis."""
    axes = plan_axes(plan)
    if axis != "one worker" and axis not in axes:
        raise SpecError(
            "--axis",
            f"the plan is {plan}: nothing is split along this axis",
            value=axis,
            allowed=", ".join(axes) or "none: the plan has one worker",
            fix=meant(axis, axes, otherwise="give one of the allowed, or leave --axis out"),
        )
    sizes = {name: getattr(plan, name) if name == axis else 1 for name in (*AXES, "expert")}
    if axis == "expert":
        sizes["data"] = plan.expert
    changes: dict[str, object] = dict(sizes)
    if axis != "pipeline":
        changes |= {"schedule": "1f1b", "stages_per_worker": 1, "layers_per_stage": None}
    if axis != "context":
        changes["context_method"] = "ulysses"
    if axis != "tensor":
        changes["sequence"] = False
    if axis != "data":
        changes["replicate"] = 1
    return plan.changed(changes)

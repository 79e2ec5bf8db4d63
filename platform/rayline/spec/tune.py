"""TuneSpec: a search over the fields of a JobSpec."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from rayline.spec.document import Document
from rayline.spec.job import JobSpec


class Range(Document):
    """The values that one dotted field of the job may take: an interval or a list."""

    low: float | None = None
    """Smallest value of an interval."""
    high: float | None = None
    """Largest value of an interval."""
    log: bool = False
    """True draws the logarithm evenly."""
    integer: bool = False
    """True draws whole numbers, both ends included."""
    choices: list[Any] | None = None
    """The values of a list, each as likely."""

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        interval = self.low is not None and self.high is not None
        if interval == (self.choices is not None):
            raise ValueError("give either low and high, or choices")
        if self.choices is not None and not self.choices:
            raise ValueError("choices is empty")
        if self.low is not None and self.high is not None:
            if self.low >= self.high:
                raise ValueError(f"low {self.low} is not below high {self.high}")
            if self.log and self.low <= 0:
                raise ValueError(f"log needs a low above 0, not {self.low}")
        return self


class AshaSpec(Document):
    """Asynchronous successive halving (Li et al. 2020): weak trials stop early."""

    grace_steps: int = Field(default=1, ge=1)
    """Steps that every trial may run."""
    reduction_factor: int = Field(default=3, ge=2)
    """One in this many goes on at each rung."""


class TuneSpec(Document):
    """What is searched, how, and what is best."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
    """Name of the search and of its parent run in MLflow."""
    job: JobSpec
    """The job that every trial runs, changed by what was drawn."""
    space: dict[str, Range] = Field(min_length=1)
    """Dotted field of the job to its range, such as optim.lr or plan.tensor."""
    search: Literal["random", "optuna"] = "optuna"
    """random, or Optuna's TPE (Bergstra et al. 2011)."""
    trials: int = Field(ge=1)
    """Trials in all."""
    concurrent: int = Field(default=1, ge=1)
    """Trials at once, where the cluster has room."""
    metric: Literal["loss"] = "loss"
    """What is made small: the mean loss of a trial's last steps."""
    metric_window_steps: int = Field(default=1, ge=1)
    """How many of the newest steps that mean spans."""
    asha: AshaSpec | None = None
    """Early stopping; null runs every trial to its end."""
    seed: int = 0
    """Draws the trials."""
    output_dir: str = "runs/{name}"
    """Folder for the trials and best.yaml; {name} stands for the search's name."""

    @model_validator(mode="after")
    def _plan_is_told(self) -> Self:
        if self.job.plan.auto:
            raise ValueError(
                "job.plan auto is not offered in a search, whose trials must be comparable: tell "
                "a plan, or put plan.tensor and others in space"
            )
        return self

    @model_validator(mode="after")
    def _fields_exist(self) -> Self:
        known = self.job.flat()
        for dotted in self.space:
            if dotted not in known:
                raise ValueError(f"space.{dotted} is no field of the job")
        return self

    @property
    def directory(self) -> str:
        """output_dir with the name filled in."""
        return self.output_dir.replace("{name}", self.name)

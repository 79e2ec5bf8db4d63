"""TuneSpec: a search over the fields of a JobSpec."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from rayline.spec.document import Document
from rayline.spec.job import JobSpec
from rayline.spec.tune_rules import (
    AshaSpec,
    BudgetSpec,
    GoalSpec,
    HyperbandSpec,
    MedianSpec,
    NamedGoal,
    PopulationSpec,
    PruneSpec,
    StoppingSpec,
)

_GRID_INTEGERS = 1000
_PERTURBED = ("optim.", "objective.", "ema.", "guard.")
"""What may change while a model is trained."""
_FIXED = ("optim.kind", "optim.groups")
"""What of that decides how a checkpoint is read."""
Search = Literal["random", "grid", "tpe", "cmaes", "gp", "bohb"]


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
    points: int | None = Field(default=None, ge=2)
    """Values that a grid takes of an interval, its ends included; other searches do not look."""
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


class TuneSpec(Document):
    """What is searched, how, and what is best."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
    """Name of the search and of its parent run in MLflow."""
    job: JobSpec
    """The job that every trial runs, changed by what was drawn."""
    space: dict[str, Range] = Field(min_length=1)
    """Dotted field of the job to its range, such as optim.lr or plan.tensor."""
    search: Search = "tpe"
    """random; grid: every combination, in an order that seed draws; tpe (Bergstra et al. 2011), for
    which optuna is another name; cmaes: CMA-ES (Hansen 2016) over intervals; gp: a Gaussian
    process; bohb: tpe with stopping hyperband (Falkner et al. 2018)."""
    trials: int = Field(ge=1)
    """Trials that run; of a population, its members."""
    concurrent: int = Field(default=1, ge=1)
    """Trials at once, where the cluster has room."""
    metric: Literal["loss"] = "loss"
    """What is made small where objectives names nothing else: the mean loss of the last steps."""
    objectives: list[NamedGoal] | None = Field(default=None, min_length=1)
    """What is made small or large, the most important first: it ranks the trials and stops the weak
    ones. Of several, the trials that none other beats in everything are the Pareto front."""
    metric_window_steps: int = Field(default=1, ge=1)
    """How many of the newest steps the mean loss spans."""
    stopping: StoppingSpec = None
    """When weak trials stop early: asha, hyperband or median; none runs every trial to its end."""
    asha: AshaSpec | None = None
    """Another way to say stopping: {kind: asha, ...}."""
    population: PopulationSpec | None = None
    """Population-based training; null trains every trial with the values it was drawn with."""
    budget: BudgetSpec = BudgetSpec()
    price_per_worker_hour: float | None = Field(default=None, gt=0)
    """What one worker costs for an hour, in any currency."""
    prune: PruneSpec = PruneSpec()
    warm_start: list[str] = []
    """Earlier searches, or jobs, that the sampler learns from: names or ids of their runs in the
    same experiment. Runs of another model, batch or number of steps are left out."""
    seed: int = 0
    """Draws the trials."""
    output_dir: str = "runs/{name}"
    """Folder for the trials, the journal, the report and best.yaml; {name} stands for the search's
    name."""

    @field_validator("search", mode="before")
    @classmethod
    def _older_name(cls, search: object) -> object:
        return "tpe" if search == "optuna" else search

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

    @model_validator(mode="after")
    def _rules_agree(self) -> Self:
        if self.asha is not None and self.stopping is not None:
            raise ValueError("asha and stopping both say when trials stop: give one of them")
        metrics = [goal.metric for goal in self.goals]
        if len(set(metrics)) < len(metrics):
            raise ValueError("objectives names a metric twice")
        if self.search == "cmaes" and len(metrics) > 1:
            raise ValueError("search cmaes has one objective; use tpe, gp, random or grid")
        if self.search == "bohb" and not isinstance(self.rule, HyperbandSpec):
            raise ValueError("search bohb stops by hyperband; use tpe with another stopping")
        if self.price_per_worker_hour is None and (
            "price" in metrics or self.budget.money is not None
        ):
            raise ValueError("price_per_worker_hour is needed for budget.money and objective price")
        if self.warm_start and self.search in ("random", "grid"):
            raise ValueError(f"search {self.search} learns from nothing, so warm_start has no use")
        return self

    @model_validator(mode="after")
    def _space_suits_the_search(self) -> Self:
        for dotted, wanted in self.space.items():
            endless = wanted.choices is None and not wanted.integer and wanted.points is None
            if self.search == "grid" and endless:
                raise ValueError(f"space.{dotted} needs points or choices in a grid")
            if self.search == "grid" and wanted.integer and wanted.points is None:
                width = (wanted.high or 0) - (wanted.low or 0)
                if width > _GRID_INTEGERS:
                    raise ValueError(f"space.{dotted} has {width:g} values; a grid needs points")
            if self.search == "cmaes" and wanted.choices is not None:
                raise ValueError(f"space.{dotted} has choices; search cmaes takes intervals only")
        return self

    @model_validator(mode="after")
    def _population_can(self) -> Self:
        population = self.population
        if population is None:
            return self
        if self.stopping is not None or self.asha is not None or self.search == "bohb":
            raise ValueError("a population replaces its weak members: leave out stopping")
        if len(self.goals) > 1:
            raise ValueError("a population has one objective")
        if self.trials < 2:
            raise ValueError("a population needs 2 trials or more")
        for dotted in self.space:
            if not dotted.startswith(_PERTURBED) or dotted.startswith(_FIXED):
                raise ValueError(
                    f"space.{dotted} cannot change while a model is trained, as the values of a "
                    f"population do; fields below {', '.join(_PERTURBED)} can"
                )
        if self.metric_window_steps > population.every_steps:
            raise ValueError("metric_window_steps reaches beyond one generation of the population")
        if population.every_steps >= self.job.last_step:
            raise ValueError(
                f"population.every_steps {population.every_steps} leaves no second generation "
                f"within the {self.job.last_step} steps of the job"
            )
        return self

    @property
    def goals(self) -> list[GoalSpec]:
        """The objectives, the most important first."""
        return self.objectives or [GoalSpec(metric="loss")]

    @property
    def rule(self) -> AshaSpec | HyperbandSpec | MedianSpec | None:
        """What stops weak trials, wherever it was said."""
        if self.search == "bohb" and self.stopping is None and self.asha is None:
            return HyperbandSpec()
        return self.asha or self.stopping

    @property
    def longest_steps(self) -> int:
        """Steps of the longest trial that can be drawn."""
        steps = self.space.get("steps")
        if steps is None or self.job.stop_after_step is not None:
            return self.job.last_step
        if steps.high is not None:
            return int(steps.high)
        return int(max(steps.choices or [self.job.last_step]))

    @property
    def directory(self) -> str:
        """output_dir with the name filled in."""
        return self.output_dir.replace("{name}", self.name)

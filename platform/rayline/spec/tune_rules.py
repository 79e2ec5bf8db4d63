"""How a search draws less than everything: early stopping, populations, pruning, budgets, goals."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, model_validator

from rayline.spec.document import Document


class AshaSpec(Document):
    """Asynchronous successive halving (Li et al. 2020): weak trials stop early."""

    kind: Literal["asha"] = "asha"
    grace_steps: int = Field(default=1, ge=1)
    """Steps that every trial may run."""
    reduction_factor: int = Field(default=3, ge=2)
    """One in this many goes on at each rung."""


class HyperbandSpec(Document):
    """HyperBand (Li et al. 2018) as several asynchronous halvings that begin later and later."""

    kind: Literal["hyperband"] = "hyperband"
    grace_steps: int = Field(default=1, ge=1)
    """First rung of the bracket that stops trials earliest."""
    reduction_factor: int = Field(default=3, ge=2)
    """One in this many goes on at each rung; each bracket begins this many times later."""
    brackets: int | None = Field(default=None, ge=1)
    """How many brackets share the trials; null takes as many as there are rungs."""


class MedianSpec(Document):
    """Median stopping (Golovin et al. 2017): a trial that never was as good as the median of the
    others' running means stops."""

    kind: Literal["median"] = "median"
    grace_steps: int = Field(default=1, ge=1)
    """Steps that every trial may run."""
    every_steps: int = Field(default=1, ge=1)
    """Steps between two judgements."""
    min_trials: int = Field(default=3, ge=1)
    """Others that must have come so far before one is judged."""


def _rule(value: Any) -> Any:
    """`stopping: asha` is short for `stopping: {kind: asha}`; none is null."""
    if value == "none":
        return None
    return {"kind": value} if isinstance(value, str) else value


_RuleName = Literal["asha", "hyperband", "median", "none"]
StoppingSpec = Annotated[
    Annotated[AshaSpec | HyperbandSpec | MedianSpec, Discriminator("kind")] | None,
    BeforeValidator(
        _rule, json_schema_input_type=AshaSpec | HyperbandSpec | MedianSpec | _RuleName | None
    ),
]


class PopulationSpec(Document):
    """Population-based training (Jaderberg et al. 2017), in generations: the weakest members go on
    from the checkpoint of a better one, with its values perturbed."""

    every_steps: int = Field(ge=1)
    """Steps of one generation."""
    quantile: float = Field(default=0.25, gt=0, le=0.5)
    """Share of the members that is replaced after each generation, by as many of the best; at
    least one."""
    factors: list[float] = Field(default=[0.8, 1.25], min_length=1)
    """A number is multiplied by one of these; of a list of choices, a neighbour is taken."""
    resample: float = Field(default=0.1, ge=0, le=1)
    """Chance that a value is drawn anew instead."""

    @model_validator(mode="after")
    def _factors_move(self) -> Self:
        if any(factor <= 0 or factor == 1 for factor in self.factors):
            raise ValueError(f"factors {self.factors} must be above 0 and not 1")
        return self


Metric = Literal["loss", "tokens_per_s", "memory_gib", "price"]
Goal = Literal["min", "max"]


class GoalSpec(Document):
    """One of the things that a search is to make small or large."""

    metric: Metric
    """loss: mean of the newest steps. tokens_per_s: median over the steps. memory_gib: the most
    that the reporting worker held. price: worker hours of the steps x price_per_worker_hour."""
    goal: Goal | None = None
    """null makes tokens_per_s large and the others small."""

    @property
    def sign(self) -> float:
        """What a value is multiplied by so that small is good."""
        goal = self.goal or ("max" if self.metric == "tokens_per_s" else "min")
        return -1.0 if goal == "max" else 1.0


def _goal(value: Any) -> Any:
    """`loss` is short for `{metric: loss}`."""
    return {"metric": value} if isinstance(value, str) else value


NamedGoal = Annotated[GoalSpec, BeforeValidator(_goal, json_schema_input_type=GoalSpec | Metric)]


class BudgetSpec(Document):
    """What a search may use up besides its number of trials; the trials that run when it is used up
    stop after their step. null bounds nothing."""

    worker_hours: float | None = Field(default=None, gt=0)
    """Hours that trials hold workers, added up over workers."""
    gpu_hours: float | None = Field(default=None, gt=0)
    """The same, times resources.gpus_per_worker of each trial."""
    money: float | None = Field(default=None, gt=0)
    """worker_hours x price_per_worker_hour, in the currency of that."""
    wall_hours: float | None = Field(default=None, gt=0)
    """Hours that a driver of the search ran."""


class PruneSpec(Document):
    """What the planner refuses before anything is placed. A refused draw costs no trial."""

    memory: bool = True
    """Whether what does not fit a worker's device is refused: by the kind of GPU that the cluster
    tells of, or the memory of its nodes where workers run on CPUs."""
    device_memory_gib: float | None = Field(default=None, gt=0)
    """Memory of one worker's device, where the cluster does not tell it, or for one elsewhere."""
    slower_than: float | None = Field(default=None, gt=1)
    """Refuse a plan whose predicted step takes more than this many times that of the best plan in
    the space with the same other values, such as 2; null compares no times."""
    draws_per_trial: int = Field(default=20, ge=1)
    """Draws, for each trial wanted, after which a search whose draws are refused gives up."""

"""What a search came to: each trial's end, which of them is best, and who is beaten by nobody.
Values only."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rayline.spec import GoalSpec
from rayline.tuning.journal import RefusalKind
from rayline.tuning.pareto import costs_of, front

TrialStatus = Literal["finished", "stopped_early", "interrupted", "failed"]
_ORDER: tuple[TrialStatus, ...] = ("finished", "stopped_early", "interrupted", "failed")


@dataclass(frozen=True, slots=True)
class TrialReport:
    """What observers of a search are told: one step of one trial, or its end."""

    trial: int
    """Number of the trial, counted from 0."""
    trials: int
    """Trials in all."""
    step: int
    loss: float
    """Mean of the trial's newest steps, as the search compares it; NaN where it is not finite."""
    values: dict[str, float] = field(default_factory=dict)
    """Metric to value."""
    params: dict[str, Any] = field(default_factory=dict)
    status: TrialStatus | None = None
    """How it ended; None while it runs."""
    problem: str = ""
    """Why it was stopped or failed."""
    refused: int = 0
    """Draws that were refused before anything was placed, so far."""


@dataclass(frozen=True, slots=True)
class Moved:
    """A member of a population that went on from another's checkpoint."""

    after_step: int
    source: int
    """Number of the other trial."""
    params: dict[str, Any]
    """Its values from then on."""


@dataclass(frozen=True, slots=True)
class TrialOutcome:
    """One trial's end."""

    number: int
    params: dict[str, Any]
    """Dotted field to the value that was drawn; of a population, the last ones."""
    status: TrialStatus
    values: dict[str, float]
    """Metric to value; empty before the first step, without what is not finite."""
    steps: int
    run_id: str | None
    """Its run in the tracking store, a child of the search's."""
    problem: str = ""
    """Why it failed or was stopped."""
    moved: tuple[Moved, ...] = ()
    on_front: bool = False
    """Whether it finished and no other finished trial beats it in all objectives."""

    @property
    def loss(self) -> float | None:
        """Mean loss of the newest steps; None before the first, or where it is not finite."""
        return self.values.get("loss")


@dataclass(frozen=True, slots=True)
class RefusedDraw:
    """A combination that was refused before anything was placed."""

    draw: int
    params: dict[str, Any]
    kind: RefusalKind
    """spec or placement: it cannot run. memory: it does not fit. time: it cannot win."""
    reason: str


@dataclass(frozen=True, slots=True)
class SearchOutcome:
    """A search's end."""

    run_id: str
    """The search's own run, parent of the trials'."""
    trials: list[TrialOutcome]
    """Best first."""
    best_spec: str
    """File with the best trial's job, ready for `rayline train`."""
    refused: list[RefusedDraw]
    report: str
    """File of the report, HTML."""
    ended_because: str
    """All trials are done, or a budget is used up."""

    @property
    def best(self) -> TrialOutcome:
        """The finished trial that is best by the first objective."""
        return self.trials[0]

    @property
    def front(self) -> list[TrialOutcome]:
        """The Pareto front: finished trials that no other beats in all objectives, best first."""
        return [trial for trial in self.trials if trial.on_front]


def ranked(trials: Iterable[TrialOutcome], goals: Sequence[GoalSpec]) -> list[TrialOutcome]:
    """Best first: finished trials by the first objective; then those stopped early, which a rung
    found weaker, the longest first; then those without a result."""
    goal = goals[0]

    def place(trial: TrialOutcome) -> tuple[int, int, float, int]:
        value = trial.values.get(goal.metric)
        cost = math.inf if value is None or math.isnan(value) else goal.sign * value
        # Values compare at equal steps only: of unfinished trials, more steps mean more rungs won.
        steps = 0 if trial.status == "finished" else -trial.steps
        return (_ORDER.index(trial.status), steps, cost, trial.number)

    return sorted(trials, key=place)


def pareto_front(trials: Iterable[TrialOutcome], goals: Sequence[GoalSpec]) -> set[int]:
    """Numbers of the finished trials that no other finished one beats."""
    costs = {
        trial.number: found
        for trial in trials
        if trial.status == "finished" and (found := costs_of(trial.values, goals)) is not None
    }
    return set(front(costs))


def as_table(trials: Sequence[TrialOutcome]) -> str:
    """Tab-separated text, one line a trial, in the given order."""
    fields = sorted({field for trial in trials for field in trial.params})
    metrics = sorted({metric for trial in trials for metric in trial.values} | {"loss"})
    head = ["trial", "status", *metrics, "steps", "front", *fields, "run", "problem"]
    lines = ["\t".join(head)]
    for trial in trials:
        values = [f"{trial.values[name]:.6g}" if name in trial.values else "" for name in metrics]
        cells = [
            str(trial.number),
            trial.status,
            *values,
            str(trial.steps),
            "yes" if trial.on_front else "",
            *[str(trial.params.get(field, "")) for field in fields],
            trial.run_id or "",
            _one_line(trial.problem),
        ]
        lines.append("\t".join(cells))
    return "\n".join(lines) + "\n"


def refused_table(refused: Sequence[RefusedDraw]) -> str:
    """Tab-separated text, one line a draw that was refused."""
    fields = sorted({field for draw in refused for field in draw.params})
    lines = ["\t".join(["draw", "refused", *fields, "reason"])]
    for draw in refused:
        values = [str(draw.params.get(field, "")) for field in fields]
        lines.append("\t".join([str(draw.draw), draw.kind, *values, _one_line(draw.reason)]))
    return "\n".join(lines) + "\n"


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ")

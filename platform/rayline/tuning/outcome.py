"""What a search came to: each trial's end, and which of them is best. Values only."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

TrialStatus = Literal["finished", "stopped_early", "interrupted", "failed", "infeasible"]
_ORDER: tuple[TrialStatus, ...] = (
    "finished",
    "stopped_early",
    "interrupted",
    "failed",
    "infeasible",
)


@dataclass(frozen=True, slots=True)
class TrialReport:
    """What observers of a search are told: one step of one trial."""

    trial: int
    """Number of the trial, counted from 0."""
    trials: int
    """Trials in all."""
    step: int
    loss: float
    """Mean of the trial's newest steps, as the search compares it."""


@dataclass(frozen=True, slots=True)
class TrialOutcome:
    """One trial's end."""

    number: int
    params: dict[str, Any]
    """Dotted field to the value that was drawn."""
    status: TrialStatus
    loss: float | None
    """Mean loss of the newest steps; None before the first."""
    steps: int
    run_id: str | None
    """Its run in the tracking store, a child of the search's."""
    problem: str = ""
    """Why it failed or could not be tried."""


@dataclass(frozen=True, slots=True)
class SearchOutcome:
    """A search's end."""

    run_id: str
    """The search's own run, parent of the trials'."""
    trials: list[TrialOutcome]
    """Best first."""
    best_spec: str
    """File with the best trial's job, ready for `rayline train`."""

    @property
    def best(self) -> TrialOutcome:
        """The finished trial with the smallest loss."""
        return self.trials[0]


def ranked(trials: Iterable[TrialOutcome]) -> list[TrialOutcome]:
    """Best first: finished trials by loss; then those stopped early, which a rung found weaker, the
    longest first; then those without a result."""

    def place(trial: TrialOutcome) -> tuple[int, int, float, int]:
        loss = trial.loss if trial.loss is not None and not math.isnan(trial.loss) else math.inf
        # Losses compare at equal steps only: of unfinished trials, more steps mean more rungs won.
        steps = 0 if trial.status == "finished" else -trial.steps
        return (_ORDER.index(trial.status), steps, loss, trial.number)

    return sorted(trials, key=place)


def window_mean(losses: Sequence[float], window: int) -> float:
    """Mean of the newest `window` losses (of all where there are fewer); at least one is given."""
    newest = losses[-window:]
    return math.fsum(newest) / len(newest)


def as_table(trials: Sequence[TrialOutcome]) -> str:
    """Tab-separated text, one line a trial, in the given order."""
    fields = sorted({field for trial in trials for field in trial.params})
    lines = ["\t".join(["trial", "status", "loss", "steps", *fields, "run", "problem"])]
    for trial in trials:
        loss = "" if trial.loss is None else f"{trial.loss:.6g}"
        problem = trial.problem.replace("\n", " ").replace("\t", " ")
        values = [str(trial.params.get(field, "")) for field in fields]
        lines.append(
            "\t".join(
                [
                    str(trial.number),
                    trial.status,
                    loss,
                    str(trial.steps),
                    *values,
                    trial.run_id or "",
                    problem,
                ]
            )
        )
    return "\n".join(lines) + "\n"

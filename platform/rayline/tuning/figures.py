"""The figures by which trials compare, from the steps that a trial did."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from rayline.spec import StepReport

_SPEED_STEPS = 100
"""Newest steps whose speed counts."""


@dataclass(frozen=True, slots=True)
class StepFigures:
    """What is kept of one step of a trial."""

    step: int
    loss: float
    tokens_per_s: float
    memory_gib: float
    """The most that the reporting worker held so far."""
    worker_s: float
    """Wall time of the step x workers."""

    @classmethod
    def of(cls, report: StepReport) -> StepFigures:
        """Those of a report."""
        return cls(
            step=report.step,
            loss=report.loss,
            tokens_per_s=report.tokens_per_s,
            memory_gib=report.memory_bytes / 2**30,
            worker_s=report.seconds * report.workers,
        )

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))


def read_steps(file: Path) -> list[StepFigures]:
    """The steps of a file that `StepFigures.to_json` wrote, in their order; of one that was done
    again the last. Half a line at the end is left out."""
    if not file.exists():
        return []
    text = file.read_text(encoding="utf-8")
    return in_order(StepFigures(**json.loads(line)) for line in text.split("\n")[:-1])


def in_order(steps: Iterable[StepFigures]) -> list[StepFigures]:
    """Each step once: what a resume did again takes the place of what was done before."""
    found: list[StepFigures] = []
    for one in steps:
        while found and found[-1].step >= one.step:
            found.pop()
        found.append(one)
    return found


def figures_of(
    steps: Sequence[StepFigures], window: int, price_per_worker_hour: float | None
) -> dict[str, float]:
    """Metric to value after these steps; what is not finite is left out. Loss: mean of the newest
    `window` steps."""
    if not steps:
        return {}
    # The first step of a process warms up.
    speeds = [one.tokens_per_s for one in steps[1:][-_SPEED_STEPS:]] or [steps[0].tokens_per_s]
    values = {
        "loss": window_mean([one.loss for one in steps[-window:]], window),
        "tokens_per_s": median(speeds),
        "memory_gib": max(one.memory_gib for one in steps),
    }
    if price_per_worker_hour is not None:
        worker_s = math.fsum(one.worker_s for one in steps)
        values["price"] = worker_s / 3600 * price_per_worker_hour
    return {name: value for name, value in values.items() if math.isfinite(value)}


def window_mean(losses: Sequence[float], window: int) -> float:
    """Mean of the newest `window` losses (of all where there are fewer); at least one is given."""
    newest = losses[-window:]
    return math.fsum(newest) / len(newest)

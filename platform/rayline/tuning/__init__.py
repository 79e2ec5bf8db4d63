"""Search over the fields of a job, the parallel layout included: TuneSpec onto Ray Tune.

Each trial is a gang inside the trial's own placement group and a child run of the search's run.

    journal ── history ── rules: halving, median, population, pareto, budget, pruning
                 │
              Course ── drawing (Ray Tune's doors) ── Trial ── actors.train

What is known is the fold of a journal, what is decided is a function of that, and Ray Tune decides
nothing; so a search outlives its driver. The names below are imported on first use: a trial's
process needs neither Optuna nor a planner.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rayline.tuning.outcome import Moved as Moved
    from rayline.tuning.outcome import RefusedDraw as RefusedDraw
    from rayline.tuning.outcome import SearchOutcome as SearchOutcome
    from rayline.tuning.outcome import TrialOutcome as TrialOutcome
    from rayline.tuning.outcome import TrialReport as TrialReport
    from rayline.tuning.searching import search as search

_HOME = {
    "Moved": "rayline.tuning.outcome",
    "RefusedDraw": "rayline.tuning.outcome",
    "SearchOutcome": "rayline.tuning.outcome",
    "TrialOutcome": "rayline.tuning.outcome",
    "TrialReport": "rayline.tuning.outcome",
    "search": "rayline.tuning.searching",
}
__all__ = ["Moved", "RefusedDraw", "SearchOutcome", "TrialOutcome", "TrialReport", "search"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'rayline.tuning' has no attribute {name!r}")

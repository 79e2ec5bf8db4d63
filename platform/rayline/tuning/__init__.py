"""Search over the fields of a job, the parallel layout included: TuneSpec onto Ray Tune.

Each trial is a gang inside the trial's own placement group and a child run of the search's run.
"""

from rayline.tuning.outcome import SearchOutcome, TrialOutcome, TrialReport
from rayline.tuning.search import search

__all__ = ["SearchOutcome", "TrialOutcome", "TrialReport", "search"]

"""Two runs side by side: what was asked for, what was expected, where it ran, how it went.

`curves` compares two series of points by numbers alone, `runs` reads two runs and compares all of
them, `picture` draws the curves one over the other.
"""

from rayline.tracking.comparing.curves import CurveDiff, compare_curves
from rayline.tracking.comparing.picture import draw_diff
from rayline.tracking.comparing.runs import Change, RunDiff, diff_runs

__all__ = ["Change", "CurveDiff", "RunDiff", "compare_curves", "diff_runs", "draw_diff"]

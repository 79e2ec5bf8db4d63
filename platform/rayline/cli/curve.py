"""The loss curve: a line of blocks for the terminal and a PNG for the run's folder."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rayline.spec import StepReport

_BLOCKS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float], width: int = 60) -> str:
    """The values, averaged into at most `width` columns, lowest as the lowest block."""
    if not values:
        return ""
    columns = _averaged(values, width)
    low, high = min(columns), max(columns)
    span = high - low
    if span == 0:
        return _BLOCKS[0] * len(columns)
    return "".join(
        _BLOCKS[min(len(_BLOCKS) - 1, int((value - low) / span * len(_BLOCKS)))]
        for value in columns
    )


def _averaged(values: Sequence[float], width: int) -> list[float]:
    if len(values) <= width:
        return list(values)
    edges = [round(column * len(values) / width) for column in range(width + 1)]
    return [sum(values[start:stop]) / (stop - start) for start, stop in itertools.pairwise(edges)]


def draw_loss(reports: Sequence[StepReport], title: str, file: Path) -> Path:
    """Write loss over steps as a PNG, with a point for each evaluation, and return the file. Needs
    matplotlib."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(
        [report.step for report in reports],
        [report.loss for report in reports],
        lw=1.5,
        label="training",
    )
    evaluations = [evaluation for report in reports for evaluation in report.evaluations]
    if evaluations:
        axes.plot(
            [evaluation.step for evaluation in evaluations],
            [evaluation.loss for evaluation in evaluations],
            "o-",
            ms=4,
            lw=1,
            label="validation",
        )
        axes.legend()
    axes.set(title=title, xlabel="step", ylabel="loss")
    axes.grid(alpha=0.3)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)
    return file

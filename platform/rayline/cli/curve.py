"""The loss curve: a line of blocks for the terminal and a PNG for the run's folder."""

from __future__ import annotations

import itertools
import math
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


def overlay(a: Sequence[float], b: Sequence[float], width: int = 60) -> tuple[str, str]:
    """Two series as two lines of blocks over the same steps and on the same scale."""
    if not a or not b:
        return sparkline(a, width), sparkline(b, width)
    columns = min(width, max(len(a), len(b)))
    both = [
        _averaged(each, max(1, round(columns * len(each) / max(len(a), len(b))))) for each in (a, b)
    ]
    finite = [value for value in (*both[0], *both[1]) if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    return _blocks(both[0], low, high), _blocks(both[1], low, high)


def _blocks(values: Sequence[float], low: float, high: float) -> str:
    """A value that is not finite is a gap."""
    scale = len(_BLOCKS) / (high - low) if high > low else 0.0
    return "".join(
        _BLOCKS[min(len(_BLOCKS) - 1, int((value - low) * scale))] if math.isfinite(value) else " "
        for value in values
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

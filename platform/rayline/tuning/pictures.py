"""The pictures of a search's report, by matplotlib: curves, parallel coordinates, importance and
the Pareto front."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rayline.spec import GoalSpec, Range
from rayline.tuning.figures import StepFigures, window_mean
from rayline.tuning.importance import Importance
from rayline.tuning.outcome import TrialOutcome

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = {
    "finished": "#1f77b4",
    "stopped_early": "#bbbbbb",
    "failed": "#d62728",
    "interrupted": "#ff7f0e",
}
_BEST = "#2ca02c"


def _new_figure(width: float = 8.0, height: float = 4.5) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def curves(
    trials: Sequence[TrialOutcome], steps: Mapping[int, Sequence[StepFigures]], window: int
) -> Figure:
    """Loss over steps, a line a trial, the best one on top; `window` steps are averaged."""
    figure = _new_figure()
    axes = figure.add_subplot()
    for place, trial in reversed(list(enumerate(trials))):
        done = steps.get(trial.number, [])
        losses = [one.loss for one in done]
        means = [
            window_mean(losses[max(0, end - window) : end], window)
            for end in range(1, len(losses) + 1)
        ]
        best = place == 0
        axes.plot(
            [one.step for one in done],
            means,
            lw=2.0 if best else 1.0,
            color=_BEST if best else _COLOURS[trial.status],
            label=f"best: trial {trial.number}" if best else None,
        )
    axes.set(xlabel="step", ylabel="loss", title="Loss")
    axes.grid(alpha=0.3)
    if trials:
        axes.legend()
    return figure


def parallel(trials: Sequence[TrialOutcome], space: Mapping[str, Range], goal: GoalSpec) -> Figure:
    """Parallel coordinates: an axis a field and one for the objective, a line a trial that has a
    value, the darker the better."""
    shown = [trial for trial in trials if goal.metric in trial.values]
    names = [*space, goal.metric]
    figure = _new_figure(width=max(8.0, 1.6 * len(names)))
    axes = figure.add_subplot()
    columns = [_heights(dotted, wanted, shown) for dotted, wanted in space.items()]
    values = [trial.values[goal.metric] for trial in shown]
    columns.append(_scaled(values, log=False))
    order = sorted(range(len(shown)), key=lambda place: -goal.sign * values[place])
    for rank, place in enumerate(order):
        share = rank / max(1, len(order) - 1)
        axes.plot(
            range(len(names)),
            [column[place] for column in columns],
            color=_BEST if rank == len(order) - 1 else str(0.85 - 0.7 * share),
            lw=2.0 if rank == len(order) - 1 else 1.0,
        )
    axes.set(xlim=(0, len(names) - 1), ylim=(-0.08, 1.08), yticks=[], title="Trials")
    axes.set_xticks(range(len(names)), names)
    for place, name in enumerate(names):
        axes.axvline(place, color="black", lw=0.6)
        low, high = _ends(space.get(name), values)
        axes.annotate(low, (place, -0.06), ha="center", fontsize=8)
        axes.annotate(high, (place, 1.03), ha="center", fontsize=8)
    return figure


def importance_bars(found: Importance) -> Figure:
    """A bar a field."""
    figure = _new_figure(height=1.2 + 0.4 * max(1, len(found.shares)))
    axes = figure.add_subplot()
    names = list(reversed(found.shares))
    axes.barh(names, [found.shares[name] for name in names], color=_COLOURS["finished"])
    axes.set(xlim=(0, 1), xlabel=f"share, by {found.method}", title="Importance")
    return figure


def pareto(trials: Sequence[TrialOutcome], goals: Sequence[GoalSpec]) -> Figure:
    """The first objective against each other one: finished trials, those on the front filled."""
    first, others = goals[0].metric, [goal.metric for goal in goals[1:]]
    figure = _new_figure(width=max(6.0, 4.5 * len(others)))
    done = [trial for trial in trials if trial.status == "finished"]
    for place, other in enumerate(others, start=1):
        axes: Axes = figure.add_subplot(1, len(others), place)
        for trial in done:
            if first not in trial.values or other not in trial.values:
                continue
            at = (trial.values[other], trial.values[first])
            colour = _BEST if trial.on_front else _COLOURS["stopped_early"]
            axes.scatter(*at, color=colour, s=36)
            axes.annotate(f" {trial.number}", at, fontsize=8)
        axes.set(xlabel=other, ylabel=first, title="Pareto front" if place == 1 else "")
        axes.grid(alpha=0.3)
    return figure


def _heights(dotted: str, wanted: Range, shown: Sequence[TrialOutcome]) -> list[float]:
    drawn = [trial.params[dotted] for trial in shown]
    choices = wanted.choices
    if choices is not None:
        top = max(1, len(choices) - 1)
        return [choices.index(value) / top for value in drawn]
    if wanted.low is None or wanted.high is None:
        raise ValueError("an interval without an end")
    return [_share(float(value), wanted.low, wanted.high, wanted.log) for value in drawn]


def _scaled(values: Sequence[float], *, log: bool) -> list[float]:
    if not values:
        return []
    low, high = min(values), max(values)
    return [_share(value, low, high, log) for value in values]


def _share(value: float, low: float, high: float, log: bool) -> float:
    if low == high:
        return 0.5
    if log:
        return math.log(value / low) / math.log(high / low)
    return (value - low) / (high - low)


def _ends(wanted: Range | None, values: Sequence[float]) -> tuple[str, str]:
    """What stands below and above an axis."""
    ends: tuple[Any, Any]
    if wanted is None:
        ends = (min(values), max(values)) if values else ("", "")
    elif wanted.choices is not None:
        ends = (wanted.choices[0], wanted.choices[-1])
    else:
        ends = (wanted.low, wanted.high)
    low, high = (f"{end:.4g}" if isinstance(end, float) else str(end) for end in ends)
    return low, high

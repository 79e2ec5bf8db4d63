"""Runs as they are shown: rows, curves thinned to what a screen can show, and what else is told."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rayline.console.gang_views import GangView, TimelineView, gang_view, timeline_view
from rayline.tracking import MetricPoint, RunState, RunSummary, read_gangs

SHOWN_POINTS = 400
"""Of a curve: more than a screen is wide enough for; a long run has a hundred thousand."""


@dataclass(frozen=True, slots=True)
class Measure:
    """A metric that is drawn."""

    key: str
    """Of the tracking store."""
    label: str
    digits: int
    """Significant ones that are shown."""


MEASURES = (
    Measure("loss", "Training loss", 5),
    Measure("val_loss", "Held-out loss", 5),
    Measure("tokens_per_s", "Tokens per second", 4),
    Measure("grad_norm", "Gradient norm", 4),
)


@dataclass(frozen=True, slots=True)
class Curve:
    """One metric over the steps."""

    measure: Measure
    steps: tuple[int, ...]
    values: tuple[float, ...]
    """As many; finite."""
    recorded: int
    """Points that the store has; `steps` are those that show its course."""
    last: float | None


@dataclass(frozen=True, slots=True)
class RunRow:
    """A line of the list."""

    summary: RunSummary
    children: int
    """Runs of the list that are below it: a search's trials."""


@dataclass(frozen=True, slots=True)
class Fact:
    """Something that is known of a run."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class RunView:
    """One run."""

    summary: RunSummary
    last_step: int | None
    """The step that it is to end with."""
    job: str | None
    """What it was submitted as, where it was: what can be stopped."""
    curves: tuple[Curve, ...]
    gang: GangView | None
    timeline: TimelineView
    facts: tuple[Fact, ...]
    silent_s: float = 0.0
    """How long nothing was recorded of it, where somebody watches."""


_FACTS = (
    ("plan", "rayline.plan"),
    ("fingerprint", "rayline.fingerprint"),
    ("host", "rayline.host"),
    ("user", "mlflow.user"),
    ("version", "rayline.version"),
    ("commit", "mlflow.source.git.commit"),
    ("changed since the commit", "rayline.git_dirty"),
    ("submitted as", "rayline.job"),
    ("trial", "rayline.trial"),
    ("problem", "rayline.problem"),
)


def run_rows(summaries: Sequence[RunSummary]) -> list[RunRow]:
    """The list, in the order in which it is given; trials stand below the search that they are
    of."""
    below: dict[str, list[RunSummary]] = {}
    known = {summary.run_id for summary in summaries}
    for summary in summaries:
        if summary.parent_run_id in known:
            below.setdefault(str(summary.parent_run_id), []).append(summary)
    rows = []
    for summary in summaries:
        if summary.parent_run_id not in known:
            children = below.get(summary.run_id, [])
            rows.append(RunRow(summary, len(children)))
            rows += [RunRow(child, 0) for child in children]
    return rows


def run_view(
    state: RunState, curves: Mapping[str, Sequence[MetricPoint]], silent_s: float = 0.0
) -> RunView:
    """One run; `curves` has the histories of MEASURES."""
    gangs = read_gangs(state.tags)
    return RunView(
        summary=state.summary,
        last_step=state.last_step,
        job=state.tags.get("rayline.job"),
        curves=tuple(curve(measure, curves.get(measure.key, ())) for measure in MEASURES),
        gang=gang_view(gangs, state.events, state.summary.ended_at),
        timeline=timeline_view(state.summary, gangs, state.events),
        facts=tuple(
            Fact(name, state.tags[key]) for name, key in _FACTS if state.tags.get(key, "") != ""
        ),
        silent_s=silent_s,
    )


def curve(measure: Measure, points: Sequence[MetricPoint]) -> Curve:
    """A metric's course: of each step its newest value; what is no number is left out."""
    newest = {point.step: point.value for point in points if math.isfinite(point.value)}
    shown = thinned(sorted(newest.items()), SHOWN_POINTS)
    last = max(newest) if newest else None
    return Curve(
        measure=measure,
        steps=tuple(step for step, _ in shown),
        values=tuple(value for _, value in shown),
        recorded=len(newest),
        last=None if last is None else newest[last],
    )


def thinned(points: Sequence[tuple[int, float]], most: int) -> list[tuple[int, float]]:
    """At most `most` (at least 4) of the points, in order: the first and the last, and of each
    stretch between them the lowest and the highest, so that no spike is lost."""
    if len(points) <= most:
        return list(points)
    stretches = (most - 2) // 2
    inner = points[1:-1]
    kept = [points[0]]
    for number in range(stretches):
        first = number * len(inner) // stretches
        after = (number + 1) * len(inner) // stretches
        stretch = inner[first:after]
        lowest = min(stretch, key=lambda point: point[1])
        highest = max(stretch, key=lambda point: point[1])
        kept += sorted({lowest, highest})
    return [*kept, points[-1]]

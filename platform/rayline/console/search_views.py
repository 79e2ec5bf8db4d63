"""A search as a board: its trials ranked, and what each of them drew."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rayline.tracking import RunState, RunSummary

_SPACE = "space."
_ORDER = ("finished", "running", "stopped_early", "interrupted", "failed", "infeasible")


@dataclass(frozen=True, slots=True)
class SearchRow:
    """A line of the list of searches."""

    summary: RunSummary
    trials: int
    best_loss: float | None


@dataclass(frozen=True, slots=True)
class TrialView:
    """One trial."""

    place: int
    """From 1."""
    summary: RunSummary
    state: str
    """How the search saw it end, or its run's state."""
    drawn: tuple[str, ...]
    """Its values, in the order of `fields`."""
    numbers: tuple[float | None, ...]
    """The same, where they are numbers."""
    problem: str


@dataclass(frozen=True, slots=True)
class SearchView:
    """One search."""

    summary: RunSummary
    fields: tuple[str, ...]
    """What is searched over."""
    trials: tuple[TrialView, ...]
    """Best first."""
    best_run_id: str | None
    report: str | None
    """The artifact that draws it all, where there is one."""


def search_rows(summaries: Sequence[RunSummary]) -> list[SearchRow]:
    """The runs that others are below."""
    below: dict[str, list[RunSummary]] = {}
    for summary in summaries:
        if summary.parent_run_id is not None:
            below.setdefault(summary.parent_run_id, []).append(summary)
    return [
        SearchRow(summary, len(below[summary.run_id]), _lowest(below[summary.run_id]))
        for summary in summaries
        if summary.run_id in below
    ]


def search_view(search: RunState, trials: Sequence[RunState], files: Sequence[str]) -> SearchView:
    """One search; `files` are its run's artifacts."""
    fields = searched_fields(search.params, trials)
    ranked = sorted(trials, key=_place)
    best = search.tags.get("rayline.best_run") or None
    if best is None and ranked and _loss(ranked[0].summary) < math.inf:
        best = ranked[0].summary.run_id
    return SearchView(
        summary=search.summary,
        fields=fields,
        trials=tuple(_trial(place, trial, fields) for place, trial in enumerate(ranked, start=1)),
        best_run_id=best,
        report=next((file for file in files if file == "report.html"), None),
    )


def searched_fields(params: Mapping[str, str], trials: Sequence[RunState]) -> tuple[str, ...]:
    """The fields that a search draws, from its own params (space.optim.lr.low ...); where those do
    not say, the params that differ between its trials."""
    told = {key.removeprefix(_SPACE).rpartition(".")[0] for key in params if key.startswith(_SPACE)}
    if told:
        return tuple(sorted(told))
    common = set.intersection(*(set(trial.params) for trial in trials)) if trials else set()
    return tuple(
        sorted(
            key
            for key in common
            if len({trial.params[key] for trial in trials}) > 1 and key not in ("name", "seed")
        )
    )


def _trial(place: int, trial: RunState, fields: Sequence[str]) -> TrialView:
    drawn = tuple(trial.params.get(field, "") for field in fields)
    return TrialView(
        place=place,
        summary=trial.summary,
        state=_state(trial),
        drawn=drawn,
        numbers=tuple(map(_number, drawn)),
        problem=trial.tags.get("rayline.problem", ""),
    )


def _state(trial: RunState) -> str:
    return trial.tags.get("rayline.trial") or trial.summary.status


def _place(trial: RunState) -> tuple[int, int, float]:
    """As the search itself ranks: losses compare at equal steps only, so those that were stopped
    early come after those that went to the end, the longest first."""
    state = _state(trial)
    order = _ORDER.index(state) if state in _ORDER else len(_ORDER)
    steps = 0 if state == "finished" else -(trial.summary.step or 0)
    return order, steps, _loss(trial.summary)


def _loss(summary: RunSummary) -> float:
    loss = summary.loss
    return math.inf if loss is None or math.isnan(loss) else loss


def _lowest(summaries: Sequence[RunSummary]) -> float | None:
    lowest = min((_loss(summary) for summary in summaries), default=math.inf)
    return None if lowest == math.inf else lowest


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None

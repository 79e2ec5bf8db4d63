"""What a sampler learns from before its first draw: runs of earlier searches, as the store has
them."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import PurePath
from statistics import fmean, median
from typing import Any

from rayline.errors import SpecError
from rayline.spec import TrackingSpec, TuneSpec
from rayline.tracking import RunRecord, RunSummary, list_runs, read_run
from rayline.tuning.journal import KnownRow
from rayline.tuning.pareto import costs_of
from rayline.tuning.recording import STATUS_TAG
from rayline.tuning.space import holds

log = logging.getLogger(__name__)

_MOST_RUNS = 10_000
_FAMILY = ("model.", "steps", "stop_after_step", "batch.sequences", "data.sequence_tokens")
"""What must be the same for losses to compare, unless it is searched over."""
_AXES = ("data", "tensor", "pipeline", "context")


def known_rows(spec: TuneSpec) -> list[KnownRow]:
    """The finished runs that `warm_start` names and that this search can learn from. Raises
    SpecError where the store has no such run, or none of its runs is of use."""
    rows: list[KnownRow] = []
    for wanted in spec.warm_start:
        records = [read_run(spec.job.tracking, run_id) for run_id in _runs(spec, wanted)]
        told = [(record, _why_not(spec, record)) for record in records]
        usable = [known_row(spec, record) for record, reason in told if reason is None]
        reasons = sorted({reason for _, reason in told if reason is not None})
        log.info("warm start from %s: %d of %d runs", wanted, len(usable), len(records))
        if not usable:
            raise SpecError(
                "warm_start",
                f"none of {len(records)} runs can be learnt from: {'; '.join(reasons)}",
                value=wanted,
                fix="name a search over the same fields, model, batch and steps",
            )
        rows += usable
    return rows


def known_row(spec: TuneSpec, record: RunRecord) -> KnownRow:
    """What one run teaches."""
    params = {dotted: read_param(record.params[dotted]) for dotted in spec.space}
    return KnownRow(
        run_id=record.summary.run_id,
        params={name: _as_drawn(spec, name, value) for name, value in params.items()},
        values=run_values(spec, record),
    )


def run_values(spec: TuneSpec, record: RunRecord) -> dict[str, float]:
    """Metric to value, as a trial's figures are taken; what the run lacks is left out."""
    series = {name: [point.value for point in points] for name, points in record.metrics.items()}
    values: dict[str, float] = {}
    if losses := series.get("loss"):
        values["loss"] = fmean(losses[-spec.metric_window_steps :])
    if speeds := series.get("tokens_per_s"):
        values["tokens_per_s"] = median(speeds[1:] or speeds)
    if memory := series.get("memory_gib"):
        values["memory_gib"] = max(memory)
    if spec.price_per_worker_hour is not None and (seconds := series.get("time/step_s")):
        workers = 1
        for axis in _AXES:
            workers *= int(record.params.get(f"plan.{axis}", "1"))
        values["price"] = sum(seconds) * workers / 3600 * spec.price_per_worker_hour
    return values


def read_param(text: str) -> Any:
    """The inverse of how a store keeps a param."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _as_drawn(spec: TuneSpec, dotted: str, value: Any) -> Any:
    return int(value) if spec.space[dotted].integer else value


def _runs(spec: TuneSpec, wanted: str) -> list[str]:
    """Ids of the runs that a name or an id means: a search's trials, or one job's run."""
    tracking = spec.job.tracking
    run_id = _newest_of(tracking, wanted) or wanted
    children = list_runs(tracking, limit=_MOST_RUNS, parent_run_id=run_id)
    return [child.run_id for child in children] or [run_id]


def _newest_of(tracking: TrackingSpec, name: str) -> str | None:
    """The newest run of this name; None where there is none, so that it may be an id."""
    named: list[RunSummary] = [run for run in list_runs(tracking, _MOST_RUNS) if run.name == name]
    return named[0].run_id if named else None


def _why_not(spec: TuneSpec, record: RunRecord) -> str | None:
    """Why a run teaches nothing here; None where it does."""
    if record.summary.status != "finished" or record.tags.get(STATUS_TAG) not in (None, "finished"):
        return "not finished"
    if costs_of(run_values(spec, record), spec.goals) is None:
        return "an objective was not recorded"
    own = {name: _text(value) for name, value in spec.job.flat().items()}
    for name, text in own.items():
        if not name.startswith(_FAMILY) or name in spec.space:
            continue
        if not _alike(name, text, record.params):
            return f"another {name}"
    for dotted, wanted in spec.space.items():
        if dotted not in record.params:
            return f"no {dotted}"
        if not holds(wanted, read_param(record.params[dotted])):
            return f"{dotted} lies outside its range"
    return None


def _alike(name: str, text: str, params: Mapping[str, str]) -> bool:
    there = params.get(name, "null")
    if name == "model.directory":
        # The same folder, seen from elsewhere.
        return PurePath(there).name == PurePath(text).name
    return there == text


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)

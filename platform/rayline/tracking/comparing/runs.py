"""Two runs read from the store, compared."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rayline.errors import SpecError
from rayline.spec import TrackingSpec
from rayline.tracking.comparing.curves import CurveDiff, compare_curves
from rayline.tracking.delivery import RESUMED_PREFIX
from rayline.tracking.history import RunRecord, RunSummary, read_run, read_text
from rayline.tracking.provenance import ENVIRONMENT_FILE, PACKAGES_FILE

CURVES = ("loss", "val_loss", "grad_norm", "lr", "tokens_per_s", "mfu", "memory_gib", "time/step_s")
"""Metrics that are compared, as far as both runs have them."""
_PLAN_FIELDS = ("plan", "recompute")
_ENVIRONMENT_TAGS = (
    "mlflow.source.git.commit",
    "rayline.git_dirty",
    "rayline.host",
    "rayline.python",
    "rayline.version",
    "rayline.project.commit",
    "rayline.project.branch",
    "rayline.project.dirty",
    "rayline.project.diff_sha256",
    "rayline.packages_sha256",
    "rayline.base_model",
)
_PLAN_FILE, _MEASURED_FILE = "plan.json", "plan_measured.json"


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that is not the same; None where a run does not say it."""

    key: str
    a: str | None
    b: str | None


@dataclass(frozen=True, slots=True)
class RunDiff:
    """What two runs differ in."""

    a: RunSummary
    b: RunSummary
    spec: tuple[Change, ...]
    """Dotted fields of the spec."""
    plan: tuple[Change, ...]
    """The plan, what was predicted of it and what was measured."""
    environment: tuple[Change, ...]
    """Code, packages, machines."""
    curves: tuple[CurveDiff, ...]
    points: Mapping[str, tuple[Mapping[int, float], Mapping[int, float]]] = field(
        default_factory=dict
    )
    """Metric to both curves, step to value: what the curves were compared by."""


def diff_runs(tracking: TrackingSpec, a: str, b: str) -> RunDiff:
    """Compare two runs by their ids. Raises SpecError where there is no such run."""
    runs = (read_run(tracking, a), read_run(tracking, b))
    specs = tuple(_spec(run) for run in runs)
    points = {
        metric: (_curve(runs[0], metric), _curve(runs[1], metric))
        for metric in CURVES
        if all(metric in run.metrics for run in runs)
    }
    return RunDiff(
        a=runs[0].summary,
        b=runs[1].summary,
        spec=changes(
            *({key: text for key, text in spec.items() if not _of_plan(key)} for spec in specs)
        ),
        plan=changes(*(_plan(tracking, run) for run in runs)),
        environment=changes(*(_environment(tracking, run) for run in runs)),
        curves=tuple(compare_curves(metric, *both) for metric, both in points.items()),
        points=points,
    )


def changes(a: Mapping[str, str], b: Mapping[str, str]) -> tuple[Change, ...]:
    """What is not the same in two mappings, by key."""
    keys = sorted(a.keys() | b.keys())
    return tuple(Change(key, a.get(key), b.get(key)) for key in keys if a.get(key) != b.get(key))


def _of_plan(key: str) -> bool:
    return key.partition(".")[0] in _PLAN_FIELDS


def _spec(run: RunRecord) -> dict[str, str]:
    """As the run was started, or resumed, last."""
    resumed = {
        key.removeprefix(RESUMED_PREFIX): text
        for key, text in run.tags.items()
        if key.startswith(RESUMED_PREFIX)
    }
    return run.params | resumed


def _curve(run: RunRecord, metric: str) -> dict[int, float]:
    """Of a step that was done twice, the later value."""
    return {point.step: point.value for point in run.metrics[metric]}


def _plan(tracking: TrackingSpec, run: RunRecord) -> dict[str, str]:
    found = {key: text for key, text in _spec(run).items() if _of_plan(key)}
    chosen = _document(tracking, run, _PLAN_FILE).get("chosen", {})
    if "step_s" in chosen:
        found["predicted step_s"] = f"{chosen['step_s']:.4g}"
    for key, value in _document(tracking, run, _MEASURED_FILE).items():
        found[key.replace("_", " ", 1)] = f"{value:.4g}"
    return found


def _environment(tracking: TrackingSpec, run: RunRecord) -> dict[str, str]:
    found = {key: run.tags[key] for key in _ENVIRONMENT_TAGS if key in run.tags}
    tree = _document(tracking, run, ENVIRONMENT_FILE)
    for key in ("system", "processor"):
        found |= {key: str(tree[key])} if key in tree else {}
    for key, value in tree.get("hardware", {}).items():
        if key != "each":
            found[f"hardware.{key}"] = json.dumps(value)
    for line in _text(tracking, run, PACKAGES_FILE).splitlines():
        name, _, version = line.partition("==")
        found[f"package {name}"] = version
    return found


def _document(tracking: TrackingSpec, run: RunRecord, file: str) -> dict[str, Any]:
    """Of an artifact in JSON; empty where the run keeps none."""
    text = _text(tracking, run, file)
    tree: dict[str, Any] = json.loads(text) if text else {}
    return tree


def _text(tracking: TrackingSpec, run: RunRecord, file: str) -> str:
    try:
        return read_text(tracking, run.summary.run_id, file)
    except SpecError:
        # Runs of a search, and those of earlier versions, keep less.
        return ""

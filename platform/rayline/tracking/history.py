"""What the store holds: runs, their metrics over time, registered models. It is only read."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from rayline.errors import SpecError
from rayline.spec import TrackingSpec
from rayline.tracking.delivery import PARENT_TAG, RESUMED_PREFIX
from rayline.tracking.rows import EVENT_PREFIX
from rayline.tracking.store import connect, existing_run, holds_runs, store_errors

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel
    from mlflow.store.entities.paged_list import PagedList
    from mlflow.tracking import MlflowClient

T = TypeVar("T")
_PAGE = 1000


@dataclass(frozen=True, slots=True)
class RunSummary:
    """One line of a list of runs."""

    run_id: str
    name: str
    status: str
    """running, finished, failed or interrupted."""
    started_at: datetime
    ended_at: datetime | None
    parent_run_id: str | None
    step: int | None
    """Newest step recorded; None before the first."""
    loss: float | None
    """Loss of that step."""
    plan: str
    """Tag rayline.plan; empty where the run has none."""


@dataclass(frozen=True, slots=True)
class MetricPoint:
    """One value of one metric."""

    step: int
    value: float
    time_ms: int


@dataclass(frozen=True, slots=True)
class RunEvent:
    """Something that happened in a run."""

    at: datetime
    kind: str
    text: str


@dataclass(frozen=True, slots=True)
class RunRecord:
    """Everything that is recorded of one run."""

    summary: RunSummary
    params: dict[str, str]
    tags: dict[str, str]
    metrics: dict[str, list[MetricPoint]]
    """Metric to its points, in the order of steps."""
    events: list[RunEvent]


@dataclass(frozen=True, slots=True)
class RunState:
    """What is recorded of one run but its history."""

    summary: RunSummary
    last_step: int | None
    """The step that it is to end with; None where its params do not say."""
    events: list[RunEvent]
    sign: tuple[object, ...]
    """Changes whenever something is recorded."""
    params: dict[str, str]
    tags: dict[str, str]
    """All but the events."""


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """One registered model."""

    name: str
    newest_version: int | None
    """None where every version was deleted."""
    aliases: dict[str, int]
    """Alias to version."""
    updated_at: datetime
    run_id: str | None
    """Run that the newest version came from."""


def list_runs(
    tracking: TrackingSpec, limit: int = 20, parent_run_id: str | None = None
) -> list[RunSummary]:
    """The newest runs of the experiment, newest first; with `parent_run_id` only its children.
    Raises SpecError (tracking.uri)."""
    if not holds_runs(tracking):
        return []
    client = connect(tracking)
    with store_errors(tracking):
        experiment = client.get_experiment_by_name(tracking.experiment)
        if experiment is None:
            return []
        runs = client.search_runs(
            [experiment.experiment_id],
            filter_string=f"tags.`{PARENT_TAG}` = '{parent_run_id}'" if parent_run_id else "",
            max_results=limit,
            order_by=["attributes.start_time DESC"],
        )
        return [_summary(run) for run in runs]


def read_run(tracking: TrackingSpec, run_id: str) -> RunRecord:
    """One run with its whole metric history. Raises SpecError where there is no such run."""
    run = _existing(tracking, run_id)
    client = connect(tracking)
    with store_errors(tracking):
        return RunRecord(
            summary=_summary(run),
            params=dict(run.data.params),
            tags=_plain_tags(run),
            metrics={
                key: _points(client, run.info.run_id, key) for key in sorted(run.data.metrics)
            },
            events=_events(run.data.tags),
        )


def read_state(tracking: TrackingSpec, run_id: str) -> RunState:
    """One run without its history, which may be long. Raises SpecError where there is no such
    run."""
    return _state(_existing(tracking, run_id))


def _state(run: Run) -> RunState:
    data = run.data
    sign = (run.info.status, *sorted(data.metrics.items()), *sorted(data.tags.items()))
    return RunState(
        _summary(run),
        _last_step(data.params, data.tags),
        _events(data.tags),
        sign,
        dict(data.params),
        _plain_tags(run),
    )


def read_curves(
    tracking: TrackingSpec, run_id: str, metrics: Sequence[str]
) -> dict[str, list[MetricPoint]]:
    """The history of some metrics of a run, in the order of steps. Raises SpecError where there is
    no such run."""
    client = connect(tracking)
    with store_errors(tracking):
        return {key: _points(client, run_id, key) for key in metrics}


def list_children(tracking: TrackingSpec, parent_run_id: str, limit: int = 1000) -> list[RunState]:
    """The runs below one, such as a search's trials, oldest first, without their histories. Raises
    SpecError (tracking.uri)."""
    client = connect(tracking)
    with store_errors(tracking):
        experiment = client.get_experiment_by_name(tracking.experiment)
        if experiment is None:
            return []
        found = client.search_runs(
            [experiment.experiment_id],
            filter_string=f"tags.`{PARENT_TAG}` = '{parent_run_id}'",
            max_results=limit,
            order_by=["attributes.start_time ASC"],
        )
        return [_state(run) for run in found]


def list_files(tracking: TrackingSpec, run_id: str) -> list[str]:
    """The artifacts that lie at the top of a run, folders among them. Raises SpecError."""
    client = connect(tracking)
    with store_errors(tracking):
        existing_run(client, tracking, run_id)
        return sorted(str(file.path) for file in client.list_artifacts(run_id))


def _plain_tags(run: Run) -> dict[str, str]:
    return {key: text for key, text in run.data.tags.items() if not key.startswith(EVENT_PREFIX)}


def _last_step(params: Mapping[str, str], tags: Mapping[str, str]) -> int | None:
    """Of a run whose params are a job's."""
    for field in ("stop_after_step", "steps"):
        given = tags.get(f"{RESUMED_PREFIX}{field}") or params.get(field) or ""
        if given.isdigit():
            return int(given)
    return None


def _existing(tracking: TrackingSpec, run_id: str) -> Run:
    if not holds_runs(tracking):
        raise SpecError(
            "run",
            f"{tracking.uri} does not exist, so it holds no run",
            value=run_id,
            fix="`rayline runs` lists the runs; --tracking-uri names another store",
        )
    with store_errors(tracking):
        return existing_run(connect(tracking), tracking, run_id)


def read_text(tracking: TrackingSpec, run_id: str, file: str) -> str:
    """An artifact that `TrackedRun.log_text` kept. Raises SpecError where there is no such run, or
    it has none of that name."""
    from mlflow.exceptions import MlflowException

    client = connect(tracking)
    with store_errors(tracking), tempfile.TemporaryDirectory() as folder:
        found = existing_run(client, tracking, run_id)
        try:
            path = client.download_artifacts(found.info.run_id, file, folder)
        except (MlflowException, OSError):
            raise SpecError(
                "run", f"keeps no {file}", value=run_id, fix="`rayline runs RUN` shows what it has"
            ) from None
        return Path(path).read_text(encoding="utf-8")


def list_models(tracking: TrackingSpec) -> list[ModelSummary]:
    """Every registered model, by name. Raises SpecError (tracking.uri)."""
    if not holds_runs(tracking):
        return []
    client = connect(tracking)
    with store_errors(tracking):
        newest: dict[str, ModelVersion] = {}
        for version in model_versions(client):
            known = newest.get(version.name)
            if known is None or int(version.version) > int(known.version):
                newest[version.name] = version
        return [_model(model, newest.get(model.name)) for model in registered_models(client)]


def registered_models(client: MlflowClient) -> list[RegisteredModel]:
    """All registered models of a store, by name."""
    return _all_pages(
        lambda token: client.search_registered_models(
            max_results=_PAGE, order_by=["name ASC"], page_token=token
        )
    )


def model_versions(client: MlflowClient) -> list[ModelVersion]:
    """All versions of all registered models of a store."""
    return _all_pages(
        lambda token: client.search_model_versions(max_results=_PAGE, page_token=token)
    )


def _all_pages(ask: Callable[[str | None], PagedList[T]]) -> list[T]:
    found: list[T] = []
    token: str | None = None
    while True:
        page = ask(token)
        found += page
        token = page.token
        if not token:
            return found


_STATUS = {
    "RUNNING": "running",
    "SCHEDULED": "running",
    "FINISHED": "finished",
    "FAILED": "failed",
    "KILLED": "interrupted",
}


def _summary(run: Run) -> RunSummary:
    step = run.data.metrics.get("step")
    return RunSummary(
        run_id=run.info.run_id,
        name=run.info.run_name or "",
        status=_STATUS[run.info.status],
        started_at=_time(run.info.start_time),
        ended_at=_time(run.info.end_time) if run.info.end_time else None,
        parent_run_id=run.data.tags.get(PARENT_TAG),
        step=None if step is None else int(step),
        loss=run.data.metrics.get("loss"),
        plan=run.data.tags.get("rayline.plan", ""),
    )


def _points(client: MlflowClient, run_id: str, key: str) -> list[MetricPoint]:
    history = client.get_metric_history(run_id, key)
    points = [MetricPoint(point.step, point.value, point.timestamp) for point in history]
    return sorted(points, key=lambda point: (point.step, point.time_ms))


def _events(tags: Mapping[str, str]) -> list[RunEvent]:
    entries = [json.loads(tags[key]) for key in sorted(tags) if key.startswith(EVENT_PREFIX)]
    return [
        RunEvent(datetime.fromisoformat(entry["at"]), entry["kind"], entry["text"])
        for entry in entries
    ]


def _model(model: RegisteredModel, newest: ModelVersion | None) -> ModelSummary:
    return ModelSummary(
        name=model.name,
        newest_version=int(newest.version) if newest else None,
        aliases={alias: int(version) for alias, version in model.aliases.items()},
        updated_at=_time(model.last_updated_timestamp),
        run_id=newest.run_id if newest else None,
    )


def _time(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)

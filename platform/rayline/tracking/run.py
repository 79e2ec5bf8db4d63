"""One recorded run: opened, fed by the driver while training goes on, finished once.

The client of MLflow is used directly, with the run's id in every call; MLflow's fluent interface
keeps an active run per process, and a search has many.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from rayline.errors import InterruptedByUser, SpecError
from rayline.spec import StepReport, TrackingSpec
from rayline.tracking.recorder import MetricRow, Recorder, Row, TagRow
from rayline.tracking.store import connect, experiment_id, first_line, store_errors
from rayline.tracking.system import SAMPLE_S, SystemSampler
from rayline.tracking.version import code_tags

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

_log = logging.getLogger(__name__)

RunStatus = Literal["finished", "failed", "interrupted"]
_MLFLOW_STATUS = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
EVENT_PREFIX = "rayline.event."
RESUMED_PREFIX = "rayline.resumed_with."
"""Of a tag for each param that a resumed run has otherwise."""
PARENT_TAG = "mlflow.parentRunId"
_PARAM_CHARACTERS = 6000
_TAG_CHARACTERS = 8000
_PARAMS_PER_BATCH = 100
_FINISH_TIMEOUT_S = 30.0
_SHORTEST_PART_S = 1e-3


class TrackedRun:
    """A run that is being recorded; made by `open_run`, used by the driver alone.

    `observe`, `event`, `log_text` and `log_artifact` never raise because of the store: what fails
    is logged once and counted in `failures`. Metrics and events wait and are sent again.
    """

    def __init__(self, client: MlflowClient, tracking: TrackingSpec, run: Run) -> None:
        self.client = client
        self.tracking = tracking
        self.run_id: str = run.info.run_id
        self.artifact_uri: str = run.info.artifact_uri
        self.failures = 0
        self._events = sum(1 for key in run.data.tags if key.startswith(EVENT_PREFIX))
        self._finished = False
        self._recorder = Recorder(self._send, SystemSampler(), SAMPLE_S)

    def observe(self, report: StepReport) -> None:
        """Record one step. Called after every step; costs microseconds, never waits or raises."""
        now_ms = int(time.time() * 1000)
        self._recorder.add(
            MetricRow(key, value, now_ms, step)
            for key, value, step in step_metrics(report)
            if value is not None
        )
        if report.skipped:
            self.event("skipped", f"step {report.step}: {report.skipped}")

    def summarize(self, step: int, peak_memory_bytes: Mapping[str, int]) -> None:
        """Record what is known once the last step is done: each worker's peak memory, by its name,
        as the artifact memory.json, and the largest as the metric peak_memory_gib."""
        if peak_memory_bytes:
            largest_gib = max(peak_memory_bytes.values()) / 2**30
            now_ms = int(time.time() * 1000)
            self._recorder.add([MetricRow("peak_memory_gib", largest_gib, now_ms, step)])
            self.log_text(json.dumps({"peak_memory_bytes": peak_memory_bytes}), "memory.json")

    def event(self, kind: str, text: str) -> None:
        """Record that something happened, such as kind "restarted"; `read_run` gives it back."""
        entry = {"at": datetime.now(UTC).isoformat(), "kind": kind, "text": text}
        self.tag(f"{EVENT_PREFIX}{self._events:05d}", json.dumps(entry))
        self._events += 1

    def tag(self, key: str, value: str) -> None:
        """Set a tag; never waits or raises."""
        self._recorder.add([TagRow(key, value[:_TAG_CHARACTERS])])

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Keep a file, or a folder's content, with the run, under `folder`."""
        try:
            if path.is_dir():
                self.client.log_artifacts(self.run_id, str(path), folder)
            else:
                self.client.log_artifact(self.run_id, str(path), folder)
        # A run must not end because a side product of it cannot be kept.
        except Exception as wrong:  # noqa: BLE001
            self._count(f"artifact {path}", wrong)

    def log_text(self, text: str, file: str) -> None:
        """Keep `text` with the run as the artifact `file`, such as best.yaml."""
        try:
            self.client.log_text(self.run_id, text, file)
        # As in log_artifact.
        except Exception as wrong:  # noqa: BLE001
            self._count(f"artifact {file}", wrong)

    def finish(self, status: RunStatus) -> None:
        """Send what is left and close the run; further calls do nothing.

        Waits for the store 30 s at most, never raises, and says what could not be recorded.
        """
        if self._finished:
            return
        self._finished = True

        def close_run() -> None:
            self.client.set_terminated(self.run_id, _MLFLOW_STATUS[status])

        if not self._recorder.close(close_run, _FINISH_TIMEOUT_S):
            wrong = self._recorder.last_error
            self.failures += 1
            _log.error(
                "tracking: run %s ended as %s, but the store does not have %d of its rows: %s",
                self.run_id,
                status,
                self._recorder.unsent,
                first_line(wrong) if wrong else "it did not answer in time",
            )

    @property
    def unsent_rows(self) -> int:
        """Metric points and tags that the store does not have."""
        return self._recorder.unsent

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        wrong: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if wrong is None:
            self.finish("finished")
        else:
            by_user = isinstance(wrong, KeyboardInterrupt | InterruptedByUser)
            self.finish("interrupted" if by_user else "failed")

    def _send(self, rows: Sequence[Row]) -> None:
        """One request; called by the recorder's thread."""
        from mlflow.entities import Metric, RunTag

        self.client.log_batch(
            self.run_id,
            metrics=[
                Metric(row.key, row.value, row.time_ms, row.step)
                for row in rows
                if isinstance(row, MetricRow)
            ],
            tags=[RunTag(row.key, row.value) for row in rows if isinstance(row, TagRow)],
        )

    def _count(self, what: str, wrong: Exception) -> None:
        self.failures += 1
        _log.warning("tracking: %s was not recorded: %s", what, first_line(wrong))


def step_metrics(report: StepReport) -> list[tuple[str, float | None, int]]:
    """The metrics of one report with the step that each belongs to; None where there is no value.
    A part of the step that took no time to speak of counts as not done, and costs no row."""
    parts, routing = report.parts, report.routing
    rows: list[tuple[str, float | None]] = [
        ("step", report.step),
        ("loss", report.loss),
        ("grad_norm", report.grad_norm),
        ("lr", report.lr),
        ("tokens_per_s", report.tokens_per_s),
        ("tokens_per_s_per_device", report.tokens_per_s_per_device),
        ("mfu", report.mfu),
        ("routing/max_load", None if routing is None else routing.max_load),
        ("routing/balance_loss", None if routing is None else routing.balance_loss),
        ("routing/dropped", None if routing is None else routing.dropped),
        ("routing/dropped_fraction", None if routing is None else routing.dropped_fraction),
        ("memory_gib", report.memory_bytes / 2**30),
        ("time/step_s", report.seconds),
        ("time/data_s", _if_done(parts.data_s)),
        ("time/engine_s", _if_done(parts.engine_s)),
        ("time/compute_s", parts.compute_s),
        ("time/communication_s", parts.communication_s),
        ("time/evaluation_s", _if_done(parts.evaluation_s)),
        ("time/checkpoint_s", _if_done(parts.checkpoint_s)),
        ("time/profile_s", _if_done(parts.profile_s)),
    ]
    measured = [
        (key, value, evaluation.step)
        for evaluation in report.evaluations
        for key, value in (
            ("val_loss", evaluation.loss),
            ("val_perplexity", evaluation.perplexity),
        )
    ]
    return [*((key, value, report.step) for key, value in rows), *measured]


def _if_done(seconds: float) -> float | None:
    return seconds if seconds >= _SHORTEST_PART_S else None


def open_run(
    tracking: TrackingSpec,
    *,
    name: str,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    parent_run_id: str | None = None,
    run_id: str | None = None,
) -> TrackedRun:
    """Start a run, or go on with the run `run_id`. Called by the driver.

    `params` is a flattened spec (`JobSpec.flat()`); what the store holds already and what is longer
    than MLflow takes (6000 characters) is left out or cut. `tags` says what else identifies the
    run, such as rayline.fingerprint and rayline.plan; code version and host are added here.
    Raises SpecError (tracking.uri) at once where the store cannot be reached, and where `run_id`
    does not exist.
    """
    client = connect(tracking)
    all_tags = {**code_tags(), **tags}
    if parent_run_id is not None:
        all_tags[PARENT_TAG] = parent_run_id
    with store_errors(tracking):
        experiment = experiment_id(client, tracking)
        if run_id is None:
            run = client.create_run(experiment, run_name=name, tags=all_tags)
        else:
            run = existing_run(client, tracking, run_id)
            client.update_run(run_id, status="RUNNING")
            for key, value in all_tags.items():
                client.set_tag(run_id, key, value)
        _log_params(client, run, params)
        return TrackedRun(client, tracking, run)


def amend_run(
    tracking: TrackingSpec, run_id: str, tags: Mapping[str, str], status: RunStatus | None = None
) -> None:
    """Add tags to a run that is not being recorded any more, and close it as `status`.

    Called by whoever knows more about a run than its own driver did, such as a search about its
    trials. Raises SpecError where the store or the run is not there.
    """
    client = connect(tracking)
    with store_errors(tracking):
        existing_run(client, tracking, run_id)
        for key, value in tags.items():
            client.set_tag(run_id, key, value[:_TAG_CHARACTERS])
        if status is not None:
            client.set_terminated(run_id, _MLFLOW_STATUS[status])


def existing_run(client: MlflowClient, tracking: TrackingSpec, run_id: str) -> Run:
    """The run with this id. Raises SpecError where the store has none."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id)
    except MlflowException as wrong:
        if wrong.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        raise SpecError(
            "run",
            "no such run in the tracking store",
            value=run_id,
            fix="`rayline runs` lists the runs",
        ) from None


def _log_params(client: MlflowClient, run: Run, params: Mapping[str, Any]) -> None:
    """Record each param that is new. MLflow's params never change, so what a resumed run has
    otherwise becomes a tag."""
    from mlflow.entities import Param

    new: list[Param] = []
    for key, value in _as_text(params):
        known = run.data.params.get(key)
        if known is None:
            new.append(Param(key, value))
        elif known != value:
            client.set_tag(run.info.run_id, f"{RESUMED_PREFIX}{key}", value[:_TAG_CHARACTERS])
    for start in range(0, len(new), _PARAMS_PER_BATCH):
        client.log_batch(run.info.run_id, params=new[start : start + _PARAMS_PER_BATCH])


def _as_text(params: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in params.items():
        text = value if isinstance(value, str) else json.dumps(value)
        yield key, text[:_PARAM_CHARACTERS]

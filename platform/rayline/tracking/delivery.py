"""Delivery: brings the rows of one run to its store. What is brought twice is there once.

A run is found by its key before it is made; points and tags are held once by MLflow's tables; a
file is written over; a dataset is known by its digest; of an export there is one version a run and
name.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rayline.errors import RaylineError
from rayline.spec import TrackingSpec
from rayline.tracking.hashes import check_hashes
from rayline.tracking.registering import export_from_json, keep_export, register_export
from rayline.tracking.rows import (
    DatasetRow,
    FileRow,
    MetricRow,
    ModelRow,
    Row,
    TagRow,
    event_row,
)
from rayline.tracking.spool import Ending, Spool
from rayline.tracking.store import (
    KEY_TAG,
    answers,
    connect,
    experiment_id,
    first_line,
    runs_with_key,
    store_errors,
)

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

_log = logging.getLogger(__name__)

PARENT_TAG = "mlflow.parentRunId"
RESUMED_PREFIX = "rayline.resumed_with."
"""Of a tag for each param that a resumed run has otherwise."""
_PARAMS_PER_BATCH = 100
_MOST_ATTEMPTS = 3
"""Times that a file is tried which a store that answers does not take, before the rows behind it
have their turn."""


class Delivery:
    """The way of one spool's rows into the store. Called by one thread at a time, but for `open`
    and `client`, which any may call."""

    def __init__(
        self, tracking: TrackingSpec, spool: Spool, opened: Callable[[], None] = lambda: None
    ) -> None:
        """`opened` is called once, by the thread that sends, when the store has taken rows."""
        self._tracking = tracking
        self._spool = spool
        self._opened: Callable[[], None] | None = opened
        self._guard = threading.RLock()
        self._client: MlflowClient | None = None
        self._refused = 0
        self.failures = 0
        """Rows that a store which answered did not take."""

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run; None until the store has answered."""
        return self._spool.description.run_id

    def open(self, known: Run | None = None) -> MlflowClient:
        """The store's client, once the run is there: found, made, or `known`. Raises SpecError."""
        with self._guard:
            if self._client is not None:
                return self._client
            client = connect(self._tracking)
            with store_errors(self._tracking):
                run = known or self._found_or_made(client)
                self._log_params(client, run)
            self._spool.found(run.info.run_id)
            self._client = client
            return client

    def send(self, rows: Sequence[Row]) -> None:
        """One request. Raises what the store raised, unless it is certain never to take it."""
        client = self.open()
        try:
            self._send(client, str(self.run_id), rows)
        except Exception as wrong:
            if not self._hopeless(rows, wrong):
                raise
            if len(rows) > 1:
                # One of them is to blame; the others are found by halves.
                middle = len(rows) // 2
                self.send(rows[:middle])
                self.send(rows[middle:])
                return
            self.failures += 1
            what = _named(rows)
            _log.warning("tracking: %s was not recorded: %s", what, first_line(wrong))
        self._refused = 0
        if self._opened is not None:
            opened, self._opened = self._opened, None
            opened()

    def send_now(self, model: ModelRow) -> None:
        """An export that was verified just now, ahead of all that waits. Raises what the store
        raises."""
        _send_model(self.open(), str(self.run_id), model)

    def end(self, ending: Ending) -> None:
        """Close the run as what it came to."""
        self.open().set_terminated(str(self.run_id), ending.status, ending.time_ms)

    def _send(self, client: MlflowClient, run_id: str, rows: Sequence[Row]) -> None:
        from mlflow.entities import Metric, RunTag

        match rows[0]:
            case FileRow() as row:
                self._send_file(client, run_id, row)
            case DatasetRow() as row:
                _send_dataset(client, run_id, row)
            case ModelRow() as row:
                # It may lie there for days, and a later start of the job writes to the same folder.
                hashes = export_from_json(row.report).sha256
                check_hashes(Path(row.directory), hashes, f"run {run_id}")
                _send_model(client, run_id, row)
            case _:
                client.log_batch(
                    run_id,
                    metrics=[
                        Metric(row.key, row.value, row.time_ms, row.step)
                        for row in rows
                        if isinstance(row, MetricRow)
                    ],
                    tags=[RunTag(row.key, row.value) for row in rows if isinstance(row, TagRow)],
                )

    def _send_file(self, client: MlflowClient, run_id: str, row: FileRow) -> None:
        path = Path(row.path)
        if path.is_dir():
            client.log_artifacts(run_id, str(path), row.folder)
        else:
            client.log_artifact(run_id, str(path), row.folder)
        self._spool.forget_file(path)

    def _hopeless(self, rows: Sequence[Row], wrong: Exception) -> bool:
        """Whether sending the same again can't help: the store answers and refuses the content."""
        from mlflow.exceptions import MlflowException

        if isinstance(rows[0], MetricRow | TagRow):
            code = wrong.error_code if isinstance(wrong, MlflowException) else None
            return code == "INVALID_PARAMETER_VALUE"
        if isinstance(wrong, FileNotFoundError | RaylineError):
            return True
        if not answers(self._tracking):
            return False
        self._refused += 1
        return self._refused >= _MOST_ATTEMPTS

    def _found_or_made(self, client: MlflowClient) -> Run:
        """The one run of this key."""
        about = self._spool.description
        if about.run_id is not None:
            return client.get_run(about.run_id)
        experiment = experiment_id(client, self._tracking)
        found = runs_with_key(client, self._tracking, about.key)
        if found:
            return found[0]
        tags = {**about.tags, KEY_TAG: about.key}
        if PARENT_TAG in tags:
            tags[PARENT_TAG] = self._parent(client, tags[PARENT_TAG])
        made = client.create_run(
            experiment, start_time=about.started_ms, run_name=about.name, tags=tags
        )
        # MLflow's client repeats a request whose answer was lost on the way.
        first, *others = runs_with_key(client, self._tracking, about.key) or [made]
        for other in others:
            client.delete_run(other.info.run_id)
        return first

    def _parent(self, client: MlflowClient, parent: str) -> str:
        """MLflow's id of the parent, which may have been pending itself when it was named."""
        found = runs_with_key(client, self._tracking, parent) if parent.isalnum() else []
        return str(found[0].info.run_id) if found else parent

    def _log_params(self, client: MlflowClient, run: Run) -> None:
        """Record each param that is new. MLflow's params never change, so what a resumed run has
        otherwise becomes a tag."""
        from mlflow.entities import Param

        new: list[Param] = []
        for key, value in self._spool.description.params.items():
            known = run.data.params.get(key)
            if known is None:
                new.append(Param(key, value))
            elif known != value:
                client.set_tag(run.info.run_id, f"{RESUMED_PREFIX}{key}", value)
        for start in range(0, len(new), _PARAMS_PER_BATCH):
            client.log_batch(run.info.run_id, params=new[start : start + _PARAMS_PER_BATCH])


def _named(rows: Sequence[Row]) -> str:
    """For a person: what was in a request."""
    match rows[0]:
        case FileRow(path=path):
            return f"artifact {Path(path).name}"
        case DatasetRow(name=name):
            return f"dataset {name}"
        case ModelRow(directory=directory):
            return f"the model in {directory}"
        case MetricRow(key=key) | TagRow(key=key):
            return key


def _send_dataset(client: MlflowClient, run_id: str, row: DatasetRow) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(row.name, row.digest, row.source_type, row.source, profile=row.profile)
    tag = InputTag("mlflow.data.context", row.context)
    client.log_inputs(run_id, datasets=[DatasetInput(dataset, [tag])])


def _send_model(client: MlflowClient, run_id: str, row: ModelRow) -> None:
    report = export_from_json(row.report)
    keep_export(client, run_id, Path(row.directory), report)
    if row.name is None or row.alias is None:
        return
    artifacts = str(client.get_run(run_id).info.artifact_uri)
    version = register_export(client, run_id, artifacts, row.name, row.alias, report)
    text = f"{row.name} version {version.version}, alias {row.alias}"
    # Of the version's own time, so that it is one event however often it is told.
    made_at = datetime.fromtimestamp(version.creation_timestamp / 1000, UTC)
    event = event_row("registered", text, 0, made_at)
    client.set_tag(run_id, event.key, event.value)

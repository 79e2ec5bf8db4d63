"""One recorded run: opened, fed by the driver while training goes on, finished once.

What is recorded goes to the run's spool first and to the store behind it (spool.py, recorder.py,
delivery.py); a store that is away never stops or slows the job, at its start, in the middle or at
its end. The client of MLflow is used directly, with the run's id in every call; MLflow's fluent
interface keeps an active run per process, and a search has many.
"""

from __future__ import annotations

import itertools
import json
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from rayline.errors import InterruptedByUser, SpecError
from rayline.spec import StepReport, TrackingSpec
from rayline.tracking.delivery import PARENT_TAG, Delivery
from rayline.tracking.filling import fill_in
from rayline.tracking.metrics import step_metrics
from rayline.tracking.recorder import Recorder
from rayline.tracking.rows import FileRow, MetricRow, ModelRow, Row, TagRow, event_row
from rayline.tracking.sinks import SinkFeed
from rayline.tracking.spool import FOLDER, Description, Ending, Spool
from rayline.tracking.store import (
    KEY_TAG,
    anchored,
    connect,
    existing_run,
    experiment_id,
    first_line,
    store_errors,
    why_away,
    without_password,
)
from rayline.tracking.system import SAMPLE_S, SystemSampler
from rayline.tracking.version import code_tags

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

_log = logging.getLogger(__name__)

RunStatus = Literal["finished", "failed", "interrupted"]
_MLFLOW_STATUS = {"finished": "FINISHED", "failed": "FAILED", "interrupted": "KILLED"}
_DEFAULT_FOLDER = Path(".rayline")
_PARAM_CHARACTERS = 6000
_TAG_CHARACTERS = 8000
_FINISH_TIMEOUT_S = 30.0
_FILE_BYTES_PER_S = 1e6
"""The end of a run waits longer where files wait, as long as they take at this rate."""
_BACKGROUND_TIMEOUT_S = 10.0


class TrackedRun:
    """A run that is being recorded; made by `open_run`, used by the driver alone.

    `observe`, `event`, `tag`, `log_text` and `log_artifact` never wait for the store nor raise
    because of it: what is recorded waits on disk and is sent again. `failures` counts what could
    not be kept.
    """

    def __init__(
        self, tracking: TrackingSpec, spool: Spool, known: Run | None, sinks: SinkFeed
    ) -> None:
        """`known` is the run where it is in the store already."""
        self.tracking = tracking
        self.known_step = 0 if known is None else int(known.data.metrics.get("step", 0))
        """The newest step that the store had when this was opened."""
        self._failures = 0
        self._spool = spool
        self._delivery = Delivery(tracking, spool, opened=self._fill_in_earlier)
        if known is not None:
            spool.found(known.info.run_id)
            self._open(known)
        self._sinks = sinks
        self._numbers = itertools.count()
        self._file_bytes = 0
        self._background: list[threading.Thread] = []
        self._finished = False
        self._recorder = Recorder(spool, self._delivery.send, SystemSampler(), SAMPLE_S)

    def _open(self, known: Run) -> None:
        """Raises SpecError where the store refuses; one that went away meanwhile is left for
        later."""
        try:
            self._delivery.open(known)
        except SpecError:
            if why_away(self.tracking) is None:
                self._spool.remove()
                raise

    @property
    def run_id(self) -> str:
        """MLflow's id of the run, or its key while no store knows of it; both find it later."""
        return self._delivery.run_id or self._spool.description.key

    @property
    def client(self) -> MlflowClient:
        """The store's, once it has the run. Raises SpecError while it is away."""
        return self._delivery.open()

    @property
    def directory(self) -> Path:
        """Folder of the job, below which rows wait."""
        return self._spool.folder.parent.parent

    @property
    def failures(self) -> int:
        """How often something could not be recorded, in the store or a sink."""
        return self._failures + self._delivery.failures + self._sinks.failures

    @property
    def unsent_rows(self) -> int:
        """Metric points, tags and files that the store does not have."""
        return self._recorder.unsent

    def observe(self, report: StepReport) -> None:
        """Record one step. Called after every step; never waits or raises."""
        now_ms = int(time.time() * 1000)
        rows = [
            MetricRow(key, value, now_ms, step)
            for key, value, step in step_metrics(report)
            if value is not None
        ]
        self._recorder.add(rows)
        self._sinks.add(rows)
        if report.skipped:
            self.event("skipped", f"step {report.step}: {report.skipped}")

    def summarize(self, step: int, peak_memory_bytes: Mapping[str, int]) -> None:
        """Record what is known once the last step is done: each worker's peak memory, by its name,
        as the artifact memory.json, and the largest as the metric peak_memory_gib."""
        if peak_memory_bytes:
            largest_gib = max(peak_memory_bytes.values()) / 2**30
            row = MetricRow("peak_memory_gib", largest_gib, int(time.time() * 1000), step)
            self._recorder.add([row])
            self._sinks.add([row])
            self.log_text(json.dumps({"peak_memory_bytes": peak_memory_bytes}), "memory.json")

    def event(self, kind: str, text: str) -> None:
        """Record that something happened, such as kind "restarted"; `read_run` gives it back."""
        self.add(event_row(kind, text, next(self._numbers)))

    def tag(self, key: str, value: str) -> None:
        """Set a tag; never waits or raises."""
        self.add(TagRow(key, value[:_TAG_CHARACTERS]))

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Keep a file, or a folder's content, with the run, under `folder`."""
        try:
            copy = self._spool.keep_file(path)
            self._file_bytes += sum(file.stat().st_size for file in _files_of(copy))
        # A run must not end because a side product of it cannot be kept.
        except OSError as wrong:
            self._count(f"artifact {path}", wrong)
            return
        self.add(FileRow(str(copy), folder))

    def log_text(self, text: str, file: str) -> None:
        """Keep `text` with the run as the artifact `file`, such as best.yaml."""
        place = PurePosixPath(file)
        try:
            copy = self._spool.keep_text(text, place.name)
        # As in log_artifact.
        except OSError as wrong:
            self._count(f"artifact {file}", wrong)
            return
        parent = str(place.parent)
        self.add(FileRow(str(copy), None if parent == "." else parent))

    def add(self, *rows: Row) -> None:
        """Record rows of any kind; never waits or raises."""
        self._recorder.add(rows)

    def deliver(self, row: ModelRow) -> None:
        """Send a row at once. Raises what the store raises; called where somebody waits for it."""
        self._delivery.send_now(row)

    def later(self, model: ModelRow, wrong: SpecError) -> None:
        """Send an export once the server is back, and say so."""
        _log.warning(
            "tracking: the store is away (%s); the export in %s is verified and stays there, and "
            "is kept with its run once the store is back",
            wrong.problem,
            model.directory,
        )
        self.add(model)

    def in_background(self, *parts: Callable[[TrackedRun], None]) -> None:
        """Let `parts` record, one after another, what takes time to find out. They are waited for
        at the run's end, and what one raises is counted."""

        def work() -> None:
            for part in parts:
                try:
                    part(self)
                # As in log_artifact, whatever it looked at.
                except Exception as wrong:  # noqa: BLE001
                    self._count(part.__name__.strip("_").replace("_", " "), wrong)

        thread = threading.Thread(target=work, name="tracking-background", daemon=True)
        self._background.append(thread)
        thread.start()

    def finish(self, status: RunStatus) -> None:
        """Send what is left and close the run; further calls do nothing.

        Waits for the store 30 s, and longer where large files wait; never raises. What could not be
        sent by then stays in the spool, and it is said how to send it.
        """
        if self._finished:
            return
        self._finished = True
        for thread in self._background:
            thread.join(_BACKGROUND_TIMEOUT_S)
        self._sinks.close(status)
        ending = Ending(_MLFLOW_STATUS[status], int(time.time() * 1000))
        self._spool.end(ending)
        timeout_s = _FINISH_TIMEOUT_S + self._file_bytes / _FILE_BYTES_PER_S
        if self._recorder.close(lambda: self._delivery.end(ending), timeout_s):
            self._spool.remove()
            return
        self._failures += 1
        wrong = self._recorder.last_error
        _log.error(
            "tracking: run %s ended as %s, but the store does not have %d of its rows: %s; %s",
            self.run_id,
            status,
            self._recorder.unsent,
            first_line(wrong) if wrong else "it did not answer in time",
            self._remedy(),
        )
        if self._recorder.ended:
            self._spool.close()

    def _remedy(self) -> str:
        if not self._spool.on_disk:
            return "they are lost, for no disk took them either"
        return f"they are kept; `rayline sync {self.directory}` sends them"

    def _fill_in_earlier(self) -> None:
        """Send what earlier starts of the job left, now that the store answers; beside this run,
        which is not to wait for them."""
        self.in_background(_fill_in_earlier)

    def _count(self, what: str, wrong: Exception) -> None:
        self._failures += 1
        _log.warning("tracking: %s was not recorded: %s", what, first_line(wrong))

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


def open_run(
    tracking: TrackingSpec,
    *,
    name: str,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    parent_run_id: str | None = None,
    run_id: str | None = None,
    directory: Path | None = None,
) -> TrackedRun:
    """Start a run, or go on with the run `run_id`. Called by the driver.

    `params` is a flattened spec (`JobSpec.flat()`); what the store holds already and what is longer
    than MLflow takes (6000 characters) is left out or cut. `tags` says what else identifies the
    run, such as rayline.fingerprint and rayline.plan; code version and host are added here. What
    waits for the store and what the sinks write lies in `directory`, the job's; .rayline here
    without one.

    A server that is away (no answer, or one that says so) does not keep a new run from starting,
    unless tracking.when_away is refuse: it is made once the server answers. Raises SpecError
    (tracking.uri) where the address cannot be right or the store refuses, and where `run_id` does
    not exist.
    """
    all_tags = {**code_tags(), **tags}
    if parent_run_id is not None:
        all_tags[PARENT_TAG] = parent_run_id
    wanted = Description(
        key=uuid.uuid4().hex,
        uri=anchored(tracking).uri,
        experiment=tracking.experiment,
        name=name,
        started_ms=int(time.time() * 1000),
        tags={key: value[:_TAG_CHARACTERS] for key, value in all_tags.items()},
        params=dict(_as_text(params)),
    )
    home = (directory or _DEFAULT_FOLDER).absolute()
    sinks = SinkFeed.of(tracking, name, params, home)
    known, away = None, None
    if run_id is not None:
        # What its last driver left is a part of it: its newest step has to be known.
        fill_in(home)
    try:
        known = _opened(tracking, wanted, run_id)
    except SpecError:
        if run_id is None and tracking.when_away == "keep":
            away = why_away(tracking)
        if away is None:
            raise
    spool = Spool(home / FOLDER / wanted.key, wanted)
    if away is not None:
        _log.warning(
            "tracking: %s does not answer (%s). The job runs without it: what it records is kept "
            "in %s and sent once the server answers. Is the address right? (tracking.when_away: "
            "refuse ends such a job at once)",
            without_password(tracking.uri),
            away,
            spool.folder,
        )
    return TrackedRun(tracking, spool, known, sinks)


def _opened(tracking: TrackingSpec, wanted: Description, run_id: str | None) -> Run:
    """The run in a store that answers. Raises SpecError."""
    client = connect(tracking)
    with store_errors(tracking):
        if run_id is not None:
            run = existing_run(client, tracking, run_id)
            client.update_run(run.info.run_id, status="RUNNING")
            for key, value in wanted.tags.items():
                client.set_tag(run.info.run_id, key, value)
            return run
        return client.create_run(
            experiment_id(client, tracking),
            start_time=wanted.started_ms,
            run_name=wanted.name,
            tags={**wanted.tags, KEY_TAG: wanted.key},
        )


def amend_run(
    tracking: TrackingSpec, run_id: str, tags: Mapping[str, str], status: RunStatus | None = None
) -> None:
    """Add tags to a run that is not being recorded any more, and close it as `status`.

    Called by whoever knows more about a run than its own driver did, such as a search about its
    trials. Raises SpecError where the store or the run is not there.
    """
    client = connect(tracking)
    with store_errors(tracking):
        found = existing_run(client, tracking, run_id).info.run_id
        for key, value in tags.items():
            client.set_tag(found, key, value[:_TAG_CHARACTERS])
        if status is not None:
            client.set_terminated(found, _MLFLOW_STATUS[status])


def _fill_in_earlier(run: TrackedRun) -> None:
    for filled in fill_in(run.directory):
        if filled.problem is None:
            _log.info("tracking: run %s was filled in: %d rows", filled.run_id, filled.rows)


def _files_of(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from (file for file in path.rglob("*") if file.is_file())
    else:
        yield path


def _as_text(params: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in params.items():
        text = value if isinstance(value, str) else json.dumps(value)
        yield key, text[:_PARAM_CHARACTERS]

"""How the MLflow store of a TrackingSpec is reached.

Everything else in this room asks `connect` for a client and never touches MLflow's global state
(`mlflow.set_tracking_uri`, the active run), so two stores can be used in one process. MLflow takes
seconds to import, so it is imported where it is used. A store that cannot be reached is refused
before MLflow is asked: MLflow itself would retry for minutes.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx

from rayline.errors import RaylineError, SpecError
from rayline.spec import TrackingSpec

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

KEY_TAG = "rayline.run_key"
"""Tag of a run: the id that it was given before any store knew of it."""
_REACH_TIMEOUT_S = 5.0
_SQLITE = "sqlite:///"
_DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
_AWAY_STATUS = (502, 503, 504)
_ARTIFACT_FOLDER = "mlartifacts"


def anchored(tracking: TrackingSpec) -> TrackingSpec:
    """The same store, whatever folder a process stands in: a relative SQLite path is made absolute.

    Called by whoever hands a spec to another process.
    """
    path = database_file(tracking)
    if path is None:
        return tracking
    return tracking.model_copy(update={"uri": f"{_SQLITE}{path}"})


def database_file(tracking: TrackingSpec) -> Path | None:
    """The absolute path of a SQLite store; None where the store is a server or a folder."""
    if not tracking.uri.startswith(_SQLITE):
        return None
    return Path(tracking.uri.removeprefix(_SQLITE)).absolute()


def holds_runs(tracking: TrackingSpec) -> bool:
    """False where the store is a SQLite file that does not exist yet: reading need not make one."""
    path = database_file(tracking)
    return path is None or path.is_file()


def connect(tracking: TrackingSpec) -> MlflowClient:
    """A client of the store, which answered just now. Raises SpecError (tracking.uri)."""
    _refuse_unreachable(tracking)
    _prepare_process()
    from mlflow.tracking import MlflowClient

    with store_errors(tracking):
        return MlflowClient(tracking_uri=anchored(tracking).uri)


def experiment_id(client: MlflowClient, tracking: TrackingSpec) -> str:
    """Id of the experiment, which is made where it does not exist yet."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(tracking.experiment)
    if found is None:
        try:
            return str(client.create_experiment(tracking.experiment, _artifact_location(tracking)))
        except MlflowException:
            # Another process made it between the question and now.
            found = client.get_experiment_by_name(tracking.experiment)
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise SpecError(
            "tracking.experiment",
            "this experiment was deleted in the tracking store",
            value=tracking.experiment,
            fix="restore it (mlflow experiments restore) or choose another name",
        )
    return str(found.experiment_id)


@contextmanager
def store_errors(tracking: TrackingSpec) -> Iterator[None]:
    """Turn whatever the store raises into a SpecError that names it."""
    try:
        yield
    except RaylineError:
        raise
    # MLflow lets errors of SQLAlchemy, requests and every artifact store through.
    except Exception as wrong:  # noqa: BLE001
        raise SpecError(
            "tracking.uri",
            f"the tracking store refused: {first_line(wrong)}",
            value=without_password(tracking.uri),
            fix="check the address, or use the default sqlite:///mlflow.db",
        ) from None


def existing_run(client: MlflowClient, tracking: TrackingSpec, run_id: str) -> Run:
    """The run with this id, or with this key (KEY_TAG). Raises SpecError where the store has
    none."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id)
    except MlflowException as wrong:
        if wrong.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
    found = runs_with_key(client, tracking, run_id) if run_id.isalnum() else []
    if found:
        return found[0]
    raise SpecError(
        "run",
        "no such run in the tracking store",
        value=run_id,
        fix="`rayline runs` lists the runs; `rayline sync` brings those that wait on this machine",
    )


def runs_with_key(client: MlflowClient, tracking: TrackingSpec, key: str) -> list[Run]:
    """The runs of the experiment that were made under a key, the first one first: one, but for a
    request that was answered with an error and yet carried out."""
    experiment = client.get_experiment_by_name(tracking.experiment)
    if experiment is None:
        return []
    return list(
        client.search_runs(
            [experiment.experiment_id],
            filter_string=f"tags.`{KEY_TAG}` = '{key}'",
            order_by=["attributes.start_time ASC", "attributes.run_id ASC"],
        )
    )


def first_line(wrong: BaseException) -> str:
    """What an error says, in one line of at most 300 characters."""
    text = str(wrong).strip().splitlines()
    return (text[0] if text else type(wrong).__name__)[:300]


def without_password(uri: str) -> str:
    """A tracking URI as it may be printed and logged."""
    return re.sub(r"(?<=://)([^/@:]*):[^/@]*@", r"\1:***@", uri)


def _artifact_location(tracking: TrackingSpec) -> str | None:
    """Beside the SQLite file; None leaves it to the server."""
    path = database_file(tracking)
    return None if path is None else (path.parent / _ARTIFACT_FOLDER).as_uri()


def answers(tracking: TrackingSpec) -> bool:
    """Whether the store can be reached just now."""
    return _why_unreachable(tracking) is None


def why_away(tracking: TrackingSpec) -> str | None:
    """What a server said or did that will answer another time; None where it answers, where it is
    no server, and where its address cannot be right: those are told by `connect`."""
    wrong = _why_unreachable(tracking)
    return first_line(wrong) if wrong is not None and _passes(wrong) else None


def _passes(wrong: Exception) -> bool:
    """Whether the same address may answer later. A name that no name server knows will not, nor a
    file that cannot be written."""
    if isinstance(wrong, sqlite3.Error | httpx.InvalidURL | httpx.UnsupportedProtocol):
        return False
    at: BaseException | None = wrong
    while at is not None:
        if isinstance(at, socket.gaierror):
            return at.errno == socket.EAI_AGAIN
        if isinstance(at, FileNotFoundError | PermissionError | NotADirectoryError):
            return False
        at = at.__cause__ or at.__context__
    return True


def _refuse_unreachable(tracking: TrackingSpec) -> None:
    wrong = _why_unreachable(tracking)
    if wrong is not None:
        raise SpecError(
            "tracking.uri",
            f"the tracking store cannot be reached: {first_line(wrong)}",
            value=without_password(tracking.uri),
            fix="start the server or mend the address; --set tracking.uri=sqlite:///mlflow.db "
            "records into a local file",
        )


def _why_unreachable(tracking: TrackingSpec) -> Exception | None:
    try:
        _knock(tracking)
    except (OSError, sqlite3.Error, httpx.HTTPError, httpx.InvalidURL) as wrong:
        return wrong
    return None


def _knock(tracking: TrackingSpec) -> None:
    """One attempt to reach the store, a few seconds at most. Raises what the attempt raised."""
    path = database_file(tracking)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path, timeout=_REACH_TIMEOUT_S)
        try:
            connection.execute("BEGIN IMMEDIATE")
            connection.rollback()
        finally:
            connection.close()
        return
    address = urlsplit(tracking.uri)
    scheme = address.scheme.partition("+")[0]
    if scheme in ("http", "https"):
        answer = httpx.get(tracking.uri, timeout=_REACH_TIMEOUT_S)
        # A server behind a proxy that says so itself is as far away as one that says nothing.
        if answer.status_code in _AWAY_STATUS:
            answer.raise_for_status()
    elif scheme in _DATABASE_PORTS and address.hostname:
        port = address.port or _DATABASE_PORTS[scheme]
        socket.create_connection((address.hostname, port), timeout=_REACH_TIMEOUT_S).close()


def _prepare_process() -> None:
    """No telemetry, no chatter, no progress bars, short retries; what the user set stays."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # MLflow's own seven retries hold a caller for four minutes; the recorder retries by itself.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # Of a server it would print two lines about each run that ends, into whatever is printed.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    for noisy in ("mlflow", "alembic"):
        logger = logging.getLogger(noisy)
        logger.setLevel(max(logger.level, logging.WARNING))

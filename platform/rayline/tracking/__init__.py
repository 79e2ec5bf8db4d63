"""The only door to MLflow: what runs did, which models came out, and where a model lies.

The driver opens one run for a job (`open_run`), gives its `observe` to the loop as an observer and
finishes it; a verified export becomes a version (`register_model`); training and serving both turn
a ModelRef into a folder here (`resolve_model`). Importing this room costs no import of MLflow.
"""

from rayline.tracking.deployments import Served, record_deployment
from rayline.tracking.filling import FilledRun, fill_in, waiting_in
from rayline.tracking.following import RunNews, driver_lives, follow_run
from rayline.tracking.gangs import GangRecord, Seat, gang_record, gang_tags, read_gangs
from rayline.tracking.history import (
    MetricPoint,
    ModelSummary,
    RunEvent,
    RunRecord,
    RunState,
    RunSummary,
    list_children,
    list_files,
    list_models,
    list_runs,
    read_curves,
    read_run,
    read_state,
    read_text,
)
from rayline.tracking.job import find_checkpoints, read_job
from rayline.tracking.metrics import step_metrics
from rayline.tracking.provenance import Origins, record_checkpoint
from rayline.tracking.registered import ServedNote, VersionRecord, list_versions
from rayline.tracking.registry import (
    RegisteredVersion,
    check_registered_name,
    keep_model,
    model_version,
    register_model,
    registered_version,
)
from rayline.tracking.resolve import resolve_model
from rayline.tracking.run import RunStatus, TrackedRun, amend_run, open_run
from rayline.tracking.store import anchored, database_file

__all__ = [
    "FilledRun",
    "GangRecord",
    "MetricPoint",
    "ModelSummary",
    "Origins",
    "RegisteredVersion",
    "RunEvent",
    "RunNews",
    "RunRecord",
    "RunState",
    "RunStatus",
    "RunSummary",
    "Seat",
    "Served",
    "ServedNote",
    "TrackedRun",
    "VersionRecord",
    "amend_run",
    "anchored",
    "check_registered_name",
    "database_file",
    "driver_lives",
    "fill_in",
    "find_checkpoints",
    "follow_run",
    "gang_record",
    "gang_tags",
    "keep_model",
    "list_children",
    "list_files",
    "list_models",
    "list_runs",
    "list_versions",
    "model_version",
    "open_run",
    "read_curves",
    "read_gangs",
    "read_job",
    "read_run",
    "read_state",
    "read_text",
    "record_checkpoint",
    "record_deployment",
    "register_model",
    "registered_version",
    "resolve_model",
    "step_metrics",
    "waiting_in",
]

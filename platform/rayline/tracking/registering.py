"""How an export is kept with its run and becomes a version, each step once, however often it is
tried. `registry` says who does it; here is what is done."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

from rayline.spec import ExportReport

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

MODEL_FOLDER = "model"
"""Artifact folder of a run that holds its exported model."""
HASHES_TAG = "rayline.sha256"
"""Tag of a version: file name to SHA-256, as JSON."""
HASHES_FILE = "model_hashes.json"
"""The same as an artifact of the run, for models that are not registered."""
NEWEST = "latest"
"""MLflow keeps this alias to itself: it always means the newest version, without being set."""


def keep_export(client: MlflowClient, run_id: str, directory: Path, report: ExportReport) -> None:
    """Upload the folder and its hashes. Raises what MLflow raises."""
    client.log_artifacts(run_id, str(directory), MODEL_FOLDER)
    client.log_text(run_id, json.dumps(report.sha256, indent=1), HASHES_FILE)


def register_export(
    client: MlflowClient,
    run_id: str,
    artifact_uri: str,
    name: str,
    alias: str,
    report: ExportReport,
) -> ModelVersion:
    """The version of `name` that a run's kept export is, made where there is none yet; `alias`
    means it from now on. Raises what MLflow raises."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as wrong:
        if wrong.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    made = [
        version
        for version in client.search_model_versions(f"run_id = '{run_id}'")
        if version.name == name and version.tags.get(HASHES_TAG) == json.dumps(report.sha256)
    ]
    version = (
        made[0]
        if made
        else client.create_model_version(
            name,
            source=f"{artifact_uri}/{MODEL_FOLDER}",
            run_id=run_id,
            tags={
                HASHES_TAG: json.dumps(report.sha256),
                **{f"rayline.{figure}": str(value) for figure, value in _figures(report)},
            },
        )
    )
    if alias != NEWEST:
        client.set_registered_model_alias(name, alias, version.version)
    return version


def export_as_json(report: ExportReport) -> str:
    """For a row that waits."""
    return json.dumps(dataclasses.asdict(report))


def export_from_json(text: str) -> ExportReport:
    """The report of `export_as_json`."""
    return ExportReport(**json.loads(text))


def _figures(report: ExportReport) -> list[tuple[str, object]]:
    """The numbers of the verification."""
    return [
        (field.name, getattr(report, field.name))
        for field in dataclasses.fields(report)
        if field.name not in ("directory", "sha256")
    ]

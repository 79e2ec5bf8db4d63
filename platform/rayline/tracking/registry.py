"""From an exported folder to a registered version: kept with its run, hashed, under an alias.

A version carries the SHA-256 of every file and the figures of the export's verification as tags,
so `resolve_model` can tell years later whether it hands out what was verified.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rayline.errors import SpecError, meant
from rayline.spec import ExportReport, ModelRef, TrackingSpec
from rayline.tracking.history import model_versions, registered_models
from rayline.tracking.run import TrackedRun
from rayline.tracking.store import connect, holds_runs, store_errors

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient

MODEL_FOLDER = "model"
"""Artifact folder of a run that holds its exported model."""
HASHES_TAG = "rayline.sha256"
"""Tag of a version: file name to SHA-256, as JSON."""
SERVED_TAG = "rayline.served"
"""Tag of a version: where it was served last, since when, and which version stood there before, as
JSON."""
HASHES_FILE = "model_hashes.json"
"""The same as an artifact of the run, for models that are not registered."""
NEWEST = "latest"
"""MLflow keeps this alias to itself: it always means the newest version, without being set."""


def check_registered_name(name: str, alias: str) -> None:
    """Refuse what MLflow would refuse only after training. Raises SpecError; costs nothing."""
    if not name.strip() or re.search(r"[/:@'\"]", name):
        raise SpecError(
            "export.register_as",
            "not a name that a model can be registered under",
            value=name,
            allowed="any text without / : @ and quotes",
        )
    if not re.fullmatch(r"[\w-]+", alias) or re.fullmatch(r"[vV]?\d+", alias):
        raise SpecError(
            "export.alias",
            "not an alias",
            value=alias,
            allowed="letters, digits, - and _, but no version number such as 3 or v3",
            fix="such as champion",
        )


def keep_model(run: TrackedRun, export_directory: Path, report: ExportReport) -> ModelRef:
    """Keep an exported Hugging Face folder with its run, unregistered; `run:ID` finds it.

    Called by the driver once the export was verified. Raises SpecError (tracking.uri) when the
    store does not take it: a model that is nowhere must not look kept.
    """
    with store_errors(run.tracking):
        run.client.log_artifacts(run.run_id, str(export_directory), MODEL_FOLDER)
        run.client.log_text(run.run_id, json.dumps(report.sha256, indent=1), HASHES_FILE)
    return ModelRef(run=run.run_id)


def register_model(
    tracking: TrackingSpec,
    run: TrackedRun,
    export_directory: Path,
    name: str,
    alias: str,
    report: ExportReport,
) -> ModelRef:
    """Keep an exported Hugging Face folder with its run, make it a version of the registered model
    `name` and move `alias` to it. Called by the driver once the export was verified.

    Returns name@alias; `model_version` says which version that is. Raises SpecError where the name
    cannot be registered or the store does not take it.
    """
    from mlflow.exceptions import MlflowException

    check_registered_name(name, alias)
    keep_model(run, export_directory, report)
    with store_errors(tracking):
        try:
            run.client.create_registered_model(name)
        except MlflowException as wrong:
            if wrong.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        version = run.client.create_model_version(
            name,
            source=f"{run.artifact_uri}/{MODEL_FOLDER}",
            run_id=run.run_id,
            tags={
                HASHES_TAG: json.dumps(report.sha256),
                **{f"rayline.{figure}": str(value) for figure, value in _figures(report)},
            },
        )
        if alias != NEWEST:
            run.client.set_registered_model_alias(name, alias, version.version)
    run.event("registered", f"{name} version {version.version}, alias {alias}")
    return ModelRef(registry=f"{name}@{alias}")


def _figures(report: ExportReport) -> list[tuple[str, object]]:
    """The numbers of the verification."""
    return [
        (field.name, getattr(report, field.name))
        for field in dataclasses.fields(report)
        if field.name not in ("directory", "sha256")
    ]


@dataclass(frozen=True, slots=True)
class RegisteredVersion:
    """One version of a registered model."""

    name: str
    version: int
    alias: str | None
    """The alias that led to it; None where a number did, or MLflow's own `latest`, which cannot be
    moved."""
    run_id: str | None
    """The run that trained it."""


def registered_version(ref: ModelRef, tracking: TrackingSpec) -> RegisteredVersion:
    """What a registry reference means now. Raises SpecError where it means nothing."""
    _, found = find_version(ref, tracking)
    name, _, wanted = (ref.registry or "").partition("@")
    named = wanted != NEWEST and not wanted.isdigit()
    return RegisteredVersion(
        name=name,
        version=int(found.version),
        alias=wanted if named else None,
        run_id=found.run_id or None,
    )


def move_alias(
    tracking: TrackingSpec, name: str, alias: str, version: int, *, served_as: str
) -> None:
    """Let `alias` of the registered model mean `version`, which tells from then on where it is
    served. Called when a deployed version becomes the stable one. Raises SpecError where there is
    none such, or the store does not take it."""
    client, found = find_version(ModelRef(registry=f"{name}@{version}"), tracking)
    with store_errors(tracking):
        before = client.get_registered_model(name).aliases.get(alias)
        if str(before) != str(found.version):
            client.set_registered_model_alias(name, alias, str(found.version))
        told = {"as": served_as, "at": datetime.now(UTC).isoformat(), "alias": alias}
        if before is not None:
            told["before"] = str(before)
        client.set_model_version_tag(name, str(found.version), SERVED_TAG, json.dumps(told))


def model_version(ref: ModelRef, tracking: TrackingSpec) -> int:
    """The version that a registry reference means now. Raises SpecError where it means none."""
    return int(find_version(ref, tracking)[1].version)


def find_version(ref: ModelRef, tracking: TrackingSpec) -> tuple[MlflowClient, ModelVersion]:
    """The store's client and the version that `name@alias` or `name@3` means.

    Raises SpecError naming what the store has, and the nearest name.
    """
    name, _, wanted = (ref.registry or "").partition("@")
    if not holds_runs(tracking):
        raise SpecError(
            "model.registry",
            f"{tracking.uri} does not exist, so no model is registered",
            value=ref.registry,
            fix="set tracking.uri to the store that the training wrote to",
        )
    client = connect(tracking)
    with store_errors(tracking):
        models = {model.name: model for model in registered_models(client)}
        if name not in models:
            raise _unknown("name", name, models, ref)
        versions = {
            str(version.version): version
            for version in model_versions(client)
            if version.name == name
        }
        aliases = {alias: str(version) for alias, version in models[name].aliases.items()}
        if versions:
            aliases.setdefault(NEWEST, max(versions, key=int))
        number = aliases.get(wanted, wanted)
        if number not in versions:
            raise _unknown("alias or version", wanted, [*aliases, *versions], ref)
        return client, versions[number]


def _unknown(what: str, wanted: str, known: Iterable[str], ref: ModelRef) -> SpecError:
    names = sorted(known)
    return SpecError(
        "model.registry",
        f"no such registered {what} {wanted!r}",
        value=ref.registry,
        allowed=", ".join(names) or "nothing is registered yet",
        fix=meant(wanted, names, otherwise="`rayline models` lists what is registered"),
    )

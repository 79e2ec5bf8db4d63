"""From an exported folder to a registered version: kept with its run, hashed, under an alias.

A version carries the SHA-256 of every file and the figures of the export's verification as tags,
so `resolve_model` can tell years later whether it hands out what was verified.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rayline.errors import SpecError, meant
from rayline.spec import ExportReport, ModelRef, TrackingSpec
from rayline.tracking.history import model_versions, registered_models
from rayline.tracking.registering import NEWEST, export_as_json
from rayline.tracking.rows import ModelRow
from rayline.tracking.run import TrackedRun
from rayline.tracking.store import connect, holds_runs, store_errors, why_away

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion
    from mlflow.tracking import MlflowClient


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

    Called by the driver once the export was verified. Where the server is away it is kept once it
    is back, and what comes back is the folder. Raises SpecError (tracking.uri) when the store does
    not take it: a model that is nowhere must not look kept.
    """
    if _bring(run, ModelRow(str(export_directory), None, None, export_as_json(report))):
        return ModelRef(run=run.run_id)
    return ModelRef(directory=str(export_directory))


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

    Returns name@alias; `model_version` says which version that is. Where the server is away it is
    registered once it is back, and what comes back is the folder. Raises SpecError where the name
    cannot be registered or the store does not take it.
    """
    check_registered_name(name, alias)
    if _bring(run, ModelRow(str(export_directory), name, alias, export_as_json(report))):
        return ModelRef(registry=f"{name}@{alias}")
    return ModelRef(directory=str(export_directory))


def _bring(run: TrackedRun, model: ModelRow) -> bool:
    """Keep and register now (True), or leave it to the recorder where the server is away."""
    try:
        with store_errors(run.tracking):
            run.deliver(model)
    except SpecError as wrong:
        if why_away(run.tracking) is None:
            raise
        run.later(model, wrong)
        return False
    return True


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

"""The versions of registered models: where each came from, how it was verified, where it was
served. They are only read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rayline.spec import TrackingSpec
from rayline.tracking.deployments import DEPLOYMENT_PREFIX, SERVED_TAG
from rayline.tracking.history import model_versions, registered_models
from rayline.tracking.registering import HASHES_TAG
from rayline.tracking.store import connect, holds_runs, store_errors

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

_FIGURE = "rayline."


@dataclass(frozen=True, slots=True)
class ServedNote:
    """Where a version was served last."""

    name: str
    """Of the deployment, with its version."""
    at: datetime
    alias: str
    before: str | None
    """The version that the alias meant until then."""


@dataclass(frozen=True, slots=True)
class VersionRecord:
    """One version of a registered model."""

    name: str
    version: int
    aliases: tuple[str, ...]
    run_id: str | None
    """The run that trained it."""
    created_at: datetime
    files: int
    """Files whose hashes stand with it."""
    verification: dict[str, str]
    """The figures of the export's check, as ExportReport names them."""
    served: ServedNote | None


def list_versions(tracking: TrackingSpec, name: str | None = None) -> list[VersionRecord]:
    """Every version of every registered model, or of `name`, newest first in each. Raises SpecError
    (tracking.uri)."""
    if not holds_runs(tracking):
        return []
    client = connect(tracking)
    with store_errors(tracking):
        named: dict[tuple[str, str], list[str]] = {}
        for model in registered_models(client):
            for alias, version in model.aliases.items():
                named.setdefault((model.name, str(version)), []).append(alias)
        found = [
            _record(version, sorted(named.get((version.name, str(version.version)), [])))
            for version in model_versions(client)
            if name in (None, version.name)
        ]
    return sorted(found, key=lambda one: (one.name, -one.version))


def _record(version: ModelVersion, aliases: list[str]) -> VersionRecord:
    tags = version.tags
    hashes = json.loads(tags[HASHES_TAG]) if HASHES_TAG in tags else {}
    return VersionRecord(
        name=version.name,
        version=int(version.version),
        aliases=tuple(aliases),
        run_id=version.run_id or None,
        created_at=datetime.fromtimestamp(version.creation_timestamp / 1000, UTC),
        files=len(hashes),
        verification={
            key.removeprefix(_FIGURE): text
            for key, text in sorted(tags.items())
            if key.startswith(_FIGURE)
            and key not in (HASHES_TAG, SERVED_TAG)
            and not key.startswith(DEPLOYMENT_PREFIX)
        },
        served=_served(tags.get(SERVED_TAG)),
    )


def _served(told: str | None) -> ServedNote | None:
    if told is None:
        return None
    note = json.loads(told)
    at = datetime.fromisoformat(note["at"])
    return ServedNote(note["as"], at, note.get("alias", ""), note.get("before"))

"""Where a registered version is served: told by serving, kept as tags of the version."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rayline.spec import ModelRef, TrackingSpec
from rayline.tracking.history import model_versions
from rayline.tracking.registry import find_version
from rayline.tracking.store import store_errors

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

SERVED_TAG = "rayline.served"
"""Tag of a version: where it was served last, since when, and which version stood there before, as
JSON."""
DEPLOYMENT_PREFIX = "rayline.deployment."
"""Of a tag of a version for each version of a served model that it was: rayline.deployment.chat.v3,
as JSON (DeploymentRecord)."""


@dataclass(frozen=True, slots=True)
class Served:
    """A registered version that is up as a version of a served model."""

    name: str
    """Of the registered model."""
    version: int
    served: str
    """Name that it is served under."""
    number: int
    """Which version of what is served it is."""
    revision: str
    """Fingerprint of all that its replicas are made of."""
    alias: str | None
    """The alias that is to mean the version once it is the stable one."""
    stable: bool
    """Whether it gets all requests that no other version takes over."""

    @property
    def tag(self) -> str:
        """Key of the tag that holds its record."""
        return f"{DEPLOYMENT_PREFIX}{self.served}.v{self.number}"


@dataclass(frozen=True, slots=True)
class DeploymentRecord:
    """What a registered version's tag says of one place where it is, or was, served."""

    tag: str
    served: str
    number: int
    revision: str
    since: str
    """When it first came up, ISO 8601."""
    stable_since: str | None
    """When it last became the stable one; None where it never did."""
    until: str | None
    """When another version took its place; None while none has. That the model was taken away as a
    whole is known by whoever serves, not here."""


def record_deployment(tracking: TrackingSpec, told: Served) -> None:
    """Write down that a version is served, and let its alias mean it where it is the stable one.
    Called by serving. Raises SpecError where there is no such version, or the store does not take
    it."""
    client, found = find_version(ModelRef(registry=f"{told.name}@{told.version}"), tracking)
    if told.tag in found.tags and not told.stable:
        # It may have become the stable one meanwhile, which is told by another process.
        return
    now = datetime.now(UTC).isoformat()
    with store_errors(tracking):
        before = json.loads(found.tags.get(told.tag, "{}"))
        kept = {
            "served": told.served,
            "number": told.number,
            "revision": told.revision,
            "since": before.get("since", now),
            "stable_since": now if told.stable else before.get("stable_since"),
            "until": None,
        }
        client.set_model_version_tag(told.name, str(told.version), told.tag, json.dumps(kept))
        if told.stable:
            _end_others(client, told, now)
            _move_alias(client, told, now)


def deployments_of(tags: Mapping[str, str]) -> list[DeploymentRecord]:
    """Where a version with these tags was served, in the order of its coming up."""
    found = []
    for tag, text in tags.items():
        if tag.startswith(DEPLOYMENT_PREFIX):
            kept: dict[str, Any] = json.loads(text)
            found.append(DeploymentRecord(tag=tag, **kept))
    return sorted(found, key=lambda record: (record.since, record.number))


def _end_others(client: MlflowClient, told: Served, now: str) -> None:
    """The version before it gets no requests any more."""
    for version in model_versions(client):
        if version.name != told.name:
            continue
        for record in deployments_of(version.tags):
            same = record.served == told.served
            if same and record.tag != told.tag and record.stable_since and not record.until:
                kept = {**json.loads(version.tags[record.tag]), "until": now}
                client.set_model_version_tag(
                    told.name, str(version.version), record.tag, json.dumps(kept)
                )


def _move_alias(client: MlflowClient, told: Served, now: str) -> None:
    where = {"as": f"{told.served} version {told.number}", "at": now, "alias": told.alias}
    if told.alias is not None:
        before = client.get_registered_model(told.name).aliases.get(told.alias)
        if str(before) != str(told.version):
            client.set_registered_model_alias(told.name, told.alias, str(told.version))
        if before is not None:
            where["before"] = str(before)
    client.set_model_version_tag(told.name, str(told.version), SERVED_TAG, json.dumps(where))

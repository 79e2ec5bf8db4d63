"""Version: one model with one set of engine arguments, as it was deployed once."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

State = Literal["starting", "ready", "serving", "draining", "stopped", "failed"]
"""starting: its replicas come up. ready: they are up, and clients do not know. serving: it gets
requests. draining: it gets no new ones and finishes what it has. stopped: it holds nothing.
failed: it did not come up."""


@dataclass(frozen=True, slots=True)
class Registered:
    """Where a version's model stands in the model registry."""

    name: str
    version: int
    alias: str | None = None
    """The alias that is moved to it when it becomes the stable version; None moves none."""
    run_id: str | None = None
    """The run that trained it."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a deployment asks for, before it has a number."""

    fingerprint: str
    """Of all that its replicas are made of: equal fingerprints, equal answers."""
    model: str
    """The reference as it was written, such as registry:bot@champion."""
    registered: Registered | None = None


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a served model."""

    number: int
    """From 1, never used again."""
    asked: Asked
    app: str
    """The Ray Serve application that holds its replicas."""
    created_at_s: float
    """Seconds since 1970."""
    state: State = "starting"
    reason: str = ""
    """Why it is in that state, where that was not simply asked for."""

    @property
    def is_up(self) -> bool:
        """Whether its replicas can answer."""
        return self.state in ("ready", "serving", "draining")

    @property
    def holds_replicas(self) -> bool:
        """Whether it has an application, up or coming up."""
        return self.state == "starting" or self.is_up


def app_name(model: str, number: int) -> str:
    """The application of one version, such as chat--v3."""
    return f"{model}--v{number}"


def is_app_of(model: str, name: str) -> bool:
    """Whether `name` is one of a model's applications."""
    return re.fullmatch(rf"{re.escape(model)}--v\d+", name) is not None

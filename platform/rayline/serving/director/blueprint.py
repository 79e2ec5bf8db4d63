"""What is kept of a served model beside its Release: what versions are made of, what happened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rayline.spec import ServeSpec


@dataclass(frozen=True, slots=True)
class Blueprint:
    """All that a version's application is made of, so that it can be made again."""

    spec: ServeSpec
    """With its model pinned: the folder, not the alias that led to it."""
    runtime_env: Mapping[str, Any] | None = None
    """Ray's runtime environment of whoever deployed it: the code that its replicas run."""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened to a served model."""

    at_s: float
    """Seconds since 1970."""
    said: str

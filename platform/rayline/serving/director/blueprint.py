"""What is kept of a served model beside its Release: what versions are made of, what happened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rayline.serving.rollout.questions import Question
from rayline.spec import Device, ServeSpec


@dataclass(frozen=True, slots=True)
class Blueprint:
    """All that a version's application is made of, so that it can be made again."""

    spec: ServeSpec
    """With its model pinned: the folder, not the alias that led to it."""
    device: Device
    """What its engines run on."""
    revision: str
    """Fingerprint of all that its replicas are made of."""
    written_s: int = 0
    """Unix time at which the model was written; 0 where that is not known."""
    runtime_env: Mapping[str, Any] | None = None
    """Ray's runtime environment of whoever deployed it: the code that its replicas run."""
    questions: tuple[Question, ...] = ()
    """Its evaluation set."""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened to a served model."""

    at_s: float
    """Seconds since 1970."""
    said: str

"""The search's journal: one JSON line for everything that happened, appended and never changed.

What a search knows is the fold of these lines (history.py), and what it decides is a function of
that; so a search whose driver was killed is the same search once the lines are read again. Lines
that decide something are on the disk before anybody acts on them.
"""

from __future__ import annotations

import fcntl
import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from rayline.errors import SpecError
from rayline.spec.document import Document

JOURNAL_FILE = "journal.jsonl"
RefusalKind = Literal["spec", "memory", "time", "placement"]
Ending = Literal["finished", "paused", "failed"]


class _Row(Document):
    at_s: float = 0.0
    """Unix time."""


class SearchRow(_Row):
    """The first line: what is searched."""

    kind: Literal["search"] = "search"
    run_id: str
    """The search's run in the tracking store."""
    spec: dict[str, Any]
    """TuneSpec, defaults included."""
    optuna: str
    """Its version."""


class ResumedRow(_Row):
    """Another driver goes on; what the one before held is gone."""

    kind: Literal["resumed"] = "resumed"
    trials: int
    """How many are wanted now."""


class KnownRow(_Row):
    """A run of an earlier search that the sampler learns from."""

    kind: Literal["known"] = "known"
    run_id: str
    params: dict[str, Any]
    values: dict[str, float]
    """Metric to value."""


class DrawRow(_Row):
    """A combination of values: the next trial, or one that was refused."""

    kind: Literal["draw"] = "draw"
    draw: int
    """Counted from 0, refused ones included."""
    trial: int | None
    """Counted from 0; None where it was refused."""
    params: dict[str, Any]
    """Dotted field to value."""
    refused: RefusalKind | None = None
    reason: str = ""
    memory_gib: float | None = None
    """Predicted, of the worker that needs most; None where nothing was predicted."""
    step_s: float | None = None
    """Predicted time of one step."""


class StartRow(_Row):
    """A gang of a trial begins, or begins again."""

    kind: Literal["start"] = "start"
    trial: int
    segment: int = 0
    """Generation of a population; else 0."""
    workers: int
    gpus: float
    """GPUs that these hold together."""


class RungRow(_Row):
    """A trial came to a step at which trials are compared."""

    kind: Literal["rung"] = "rung"
    trial: int
    step: int
    values: dict[str, float]
    """Metric to value; what is not finite is left out."""


class StopRow(_Row):
    """A trial is stopped early."""

    kind: Literal["stop"] = "stop"
    trial: int
    step: int
    values: dict[str, float]
    reason: str


class EndRow(_Row):
    """A gang of a trial ended by itself."""

    kind: Literal["end"] = "end"
    trial: int
    segment: int = 0
    ending: Ending
    """paused: a member of a population, after its generation."""
    step: int
    values: dict[str, float]
    run_id: str | None = None
    checkpoint: str | None = None
    problem: str = ""


class Move(Document):
    """What one member of a population goes on from."""

    source: int
    """Number of the trial whose checkpoint it takes."""
    params: dict[str, Any]


class GenerationRow(_Row):
    """A population's next generation: those that are replaced."""

    kind: Literal["generation"] = "generation"
    generation: int
    """The one that begins; the first one, which is drawn, is 0."""
    moves: dict[int, Move]


class ClosedRow(_Row):
    """The search is over."""

    kind: Literal["closed"] = "closed"
    reason: str


Row = Annotated[
    SearchRow
    | ResumedRow
    | KnownRow
    | DrawRow
    | StartRow
    | RungRow
    | StopRow
    | EndRow
    | GenerationRow
    | ClosedRow,
    Field(discriminator="kind"),
]
_ROW: TypeAdapter[Row] = TypeAdapter(Row)


class Journal:
    """The file, held by one driver at a time. Raises SpecError where another one holds it."""

    def __init__(self, file: Path) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self.file = file
        self._out = file.open("ab")
        try:
            fcntl.flock(self._out, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._out.close()
            raise SpecError(
                "search", "another driver goes on with this search", value=str(file.parent)
            ) from None
        self._cut_torn_line()

    def append(self, row: Row, *, sure: bool = True) -> None:
        """Add a line; `sure` returns once it is on the disk."""
        text = json.dumps(row.model_dump(mode="json"), separators=(",", ":"))
        self._out.write(text.encode() + b"\n")
        self._out.flush()
        if sure:
            os.fsync(self._out.fileno())

    def close(self) -> None:
        """Let another driver have it."""
        self._out.close()

    def _cut_torn_line(self) -> None:
        """A driver that was killed may have left half a line, of which nobody acted."""
        content = self.file.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            self._out.truncate(whole)


def read_rows(text: str, origin: str) -> list[Row]:
    """The lines of a journal; half a line at the end is left out. Raises SpecError."""
    rows = []
    for number, line in enumerate(text[: text.rfind("\n") + 1].splitlines(), start=1):
        try:
            rows.append(_ROW.validate_json(line))
        except ValidationError:
            raise SpecError(
                f"{origin}, line {number}", "is no line of a search's journal"
            ) from None
    return rows

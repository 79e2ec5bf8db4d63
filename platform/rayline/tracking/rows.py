"""What is recorded of a run, one row at a time; in a file a row is one line of JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import astuple, dataclass
from datetime import UTC, datetime
from typing import Any

EVENT_PREFIX = "rayline.event."
BATCH_ROWS = 1000
"""Most rows in one request: MLflow's own limit is 1000 metrics and 100 tags."""
BATCH_TAGS = 100


@dataclass(frozen=True, slots=True)
class MetricRow:
    """One point of one metric."""

    key: str
    value: float
    time_ms: int
    step: int


@dataclass(frozen=True, slots=True)
class TagRow:
    """One tag of the run."""

    key: str
    value: str


@dataclass(frozen=True, slots=True)
class FileRow:
    """A file, or a folder's content, to be kept with the run."""

    path: str
    """Of the copy that waits."""
    folder: str | None
    """Artifact folder that it goes to; None for the top."""


@dataclass(frozen=True, slots=True)
class DatasetRow:
    """Data that the run reads; MLflow knows one by name and digest."""

    name: str
    digest: str
    """At most 36 characters."""
    source_type: str
    source: str
    """JSON."""
    profile: str
    """JSON: what is known of it."""
    context: str
    """What the run does with it: training or evaluation."""


@dataclass(frozen=True, slots=True)
class ModelRow:
    """An export that is to be kept with the run, and registered where it has a name."""

    directory: str
    """Of the export itself: a model is too large for a copy."""
    name: str | None
    alias: str | None
    report: str
    """The ExportReport as JSON."""


Row = MetricRow | TagRow | FileRow | DatasetRow | ModelRow
_KINDS: dict[str, type[Any]] = {
    "metric": MetricRow,
    "tag": TagRow,
    "file": FileRow,
    "dataset": DatasetRow,
    "model": ModelRow,
}
_NAMES = {kind: name for name, kind in _KINDS.items()}


def to_line(row: Row) -> str:
    """The row as one line, without its end."""
    return json.dumps([_NAMES[type(row)], *astuple(row)], separators=(",", ":"))


def from_line(line: str | bytes) -> Row:
    """The row of a line that `to_line` made. Raises ValueError where it is none."""
    name, *values = json.loads(line)
    if name not in _KINDS:
        raise ValueError(f"no such kind of row: {name!r}")
    row: Row = _KINDS[name](*values)
    return row


def event_row(kind: str, text: str, number: int, at: datetime | None = None) -> TagRow:
    """Something that happened, as a tag. The key sorts by time and is never used twice, whatever
    the store has of the run already; `number` tells apart what happens within a millisecond."""
    when = at or datetime.now(UTC)
    entry = {"at": when.isoformat(), "kind": kind, "text": text}
    key = f"{EVENT_PREFIX}{int(when.timestamp() * 1000):013d}.{number:05d}"
    return TagRow(key, json.dumps(entry))


def next_batch(rows: Iterable[Row]) -> list[Row]:
    """The longest beginning of `rows` that one request may hold: metrics and tags, or one row of
    another kind."""
    batch: list[Row] = []
    tags = 0
    for row in rows:
        if not isinstance(row, MetricRow | TagRow):
            return batch or [row]
        tags += isinstance(row, TagRow)
        if len(batch) == BATCH_ROWS or tags > BATCH_TAGS:
            break
        batch.append(row)
    return batch

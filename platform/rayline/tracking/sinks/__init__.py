"""Where a run's metrics go besides MLflow: TensorBoard, W&B, SwanLab (tracking.sinks).

One thread opens the sinks, gives each the same rows in the same order and ends them, so a sink that
is slow or fails holds nothing up; what it does not take is counted, once said, and never raised.
What a sink needs is imported when one is asked for. Without a key for their servers W&B and SwanLab
write into the job's folder, to be sent by their own commands (`wandb sync`, `swanlab sync`).
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, Self

from rayline.errors import SpecError
from rayline.spec import TrackingSpec
from rayline.tracking.rows import MetricRow

_log = logging.getLogger(__name__)

_CLOSE_TIMEOUT_S = 60.0
_MOST_WAITING = 100_000
"""Rows that wait for a sink which has stalled; what comes on top is counted as not taken."""
_PACKAGES = {"tensorboard": "tensorboard", "wandb": "wandb", "swanlab": "swanlab"}
_MODULES = {
    "tensorboard": "rayline.tracking.sinks.tensor_board",
    "wandb": "rayline.tracking.sinks.weights_and_biases",
    "swanlab": "rayline.tracking.sinks.swan_lab",
}


@dataclass(frozen=True, slots=True)
class SinkRun:
    """What a sink is told of the run."""

    name: str
    project: str
    params: Mapping[str, Any]
    directory: Path
    """The job's folder; a sink writes below it."""


class Sink(Protocol):
    """One place that takes metrics. Used by one thread; may raise whatever its package raises."""

    def add(self, step: int, values: Mapping[str, float], time_ms: int) -> None:
        """The metrics of one step; steps never go back."""

    def close(self, status: str) -> None:
        """Nothing follows; the run has finished, failed or was interrupted."""


class SinkFeed:
    """The thread that feeds the sinks of one run; none where none are asked for."""

    def __init__(self, kinds: Sequence[str], run: SinkRun) -> None:
        self.failures = 0
        """Rows that a sink did not take, and sinks that could not be opened or closed."""
        self._kinds = tuple(kinds)
        self._run = run
        self._waiting: queue.Queue[Sequence[MetricRow] | str] = queue.Queue()
        self._queued = 0
        self._said: set[str] = set()
        self._thread: threading.Thread | None = None

    @classmethod
    def of(
        cls, tracking: TrackingSpec, name: str, params: Mapping[str, Any], directory: Path
    ) -> Self:
        """For a run that is about to begin; nothing is opened before its first row. Raises
        SpecError where a sink's package is not installed."""
        for kind in tracking.sinks:
            if importlib.util.find_spec(_PACKAGES[kind]) is None:
                raise SpecError(
                    "tracking.sinks",
                    f"{_PACKAGES[kind]} is not installed",
                    value=kind,
                    fix='pip install "rayline[sinks]", or leave it out',
                )
        return cls(tracking.sinks, SinkRun(name, tracking.experiment, params, directory))

    def add(self, rows: Sequence[MetricRow]) -> None:
        """Hand the rows of one report over; never waits or raises."""
        if not self._kinds or not rows:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._feed, name="tracking-sinks", daemon=True)
            self._thread.start()
        if self._queued >= _MOST_WAITING:
            self._count("all", "it has stalled", len(rows))
            return
        self._queued += len(rows)
        self._waiting.put(rows)

    def close(self, status: str) -> None:
        """Feed what is left and end the sinks; waits a minute at most."""
        if self._thread is None:
            return
        self._waiting.put(status)
        self._thread.join(_CLOSE_TIMEOUT_S)
        if self._thread.is_alive():
            self._count("all", f"no end within {_CLOSE_TIMEOUT_S:.0f} s", 1)

    def _feed(self) -> None:
        sinks: dict[str, Sink] = {}
        for kind in self._kinds:

            def opened(kind: str = kind) -> None:
                sinks[kind] = importlib.import_module(_MODULES[kind]).open_sink(self._run)

            self._guarded(kind, opened, 1)
        newest = 0
        while not isinstance(rows := self._waiting.get(), str):
            self._queued -= len(rows)
            for step in sorted({row.step for row in rows}):
                # W&B refuses a step that goes back, as an evaluation before the first one does.
                newest = max(newest, step)
                values = {row.key: row.value for row in rows if row.step == step}
                for kind, sink in sinks.items():

                    def added(sink: Sink = sink, values: dict[str, float] = values) -> None:
                        sink.add(newest, values, rows[0].time_ms)  # noqa: B023 - called at once

                    self._guarded(kind, added, len(values))
        status = rows
        for kind, sink in sinks.items():

            def closed(sink: Sink = sink) -> None:
                sink.close(status)

            self._guarded(kind, closed, 1)

    def _guarded(self, kind: str, action: Callable[[], None], rows: int) -> None:
        try:
            action()
        # Sinks raise whatever their packages raise, and none of it may end the job.
        except Exception as wrong:  # noqa: BLE001
            self._count(kind, str(wrong).partition("\n")[0] or type(wrong).__name__, rows)

    def _count(self, kind: str, reason: str, rows: int) -> None:
        self.failures += rows
        if kind not in self._said:
            self._said.add(kind)
            _log.warning("tracking.sinks: %s does not take what it should: %s", kind, reason)

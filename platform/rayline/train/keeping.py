"""A rank's snapshots: taken after a step, gone on from after a loss.

A snapshot holds what a checkpoint holds, and on rank 0 the newest reports too: a report that was
made but not fetched when rank 0 died is made again from there, so the record has no gap.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from rayline.checkpoint import CheckpointHeader, Snapshot, SnapshotArea
from rayline.spec import JobSpec, StepReport, WorkerContext
from rayline.train.engine import Engine

_REPORTS_KEPT = 256
"""More than are made between two looks of the driver, which takes them once a second."""
_LOOK_S = 0.002


class Snapshots:
    """What one rank keeps in its area, if it has one. Every rank calls it in the same order."""

    def __init__(self, job: JobSpec, context: WorkerContext) -> None:
        self._every = job.recovery.snapshot_every_steps
        self._epoch = context.epoch
        self._step = context.resume_step
        self._sent = context.snapshots_sent
        self._area: SnapshotArea | None = None
        if context.snapshot_area is not None:
            self._area = SnapshotArea(Path(context.snapshot_area))
        self._reports: deque[str] = deque(maxlen=_REPORTS_KEPT)

    def close(self) -> None:
        """Let go of the area, which stays as it is."""
        if self._area is not None:
            self._area.close()

    def restore(self, engine: Engine, observe: Callable[[StepReport], None]) -> Snapshot | None:
        """Fill the engine from the snapshot that the gang goes on from, and make its reports again.
        None where it goes on from none. Raises CheckpointError."""
        if self._area is None or self._step is None:
            return None
        kept = self._area.read(self._step)
        pieces = engine.pieces()
        self._area.fill(kept, pieces)
        engine.restore(pieces, kept.header.scalars)
        for line in kept.reports:
            self._reports.append(line)
            observe(StepReport.from_json(line))
        return kept

    def note(self, report: StepReport) -> None:
        """Keep a report, made on rank 0, with the snapshots that follow."""
        if self._area is not None:
            self._reports.append(report.to_json())

    def is_due(self, step: int) -> bool:
        """Whether a snapshot follows `step`."""
        return self._area is not None and self._every is not None and step % self._every == 0

    @property
    def post_to_storage(self) -> bool:
        """Whether checkpoints may be written from memory, by another process."""
        return self._area is not None

    def post(self, header: CheckpointHeader, engine: Engine) -> bool:
        """Copy what this rank owns to where it is written to storage from; False where the last one
        is still being written. Raises CheckpointError where there is no memory for it."""
        return self._area is not None and self._area.post(header, self._epoch, engine.pieces())

    def keep(self, header: CheckpointHeader, engine: Engine) -> None:
        """Copy this rank's state, once the copy before has been sent to where it is wanted. Raises
        CheckpointError where there is no memory for it."""
        if self._area is None:
            return
        while self._sent and not self._area.newest_is_sent():
            time.sleep(_LOOK_S)
        self._area.keep(header, self._epoch, engine.pieces(), self._reports)

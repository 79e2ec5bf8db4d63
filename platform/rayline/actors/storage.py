"""From outboxes to storage: the part of a keeper that writes checkpoints while ranks go on.

Every keeper writes the shards of its node's ranks and tells one of them, the committer, which makes
the folder a checkpoint once all ranks' shards are there. A rank that died before it posted its part
leaves a checkpoint that is never committed; the next one takes its place.

Storage may hang, and a thread in a call of the kernel's cannot be ended. So every shard is written
by a thread of its own, which is left behind where it takes too long; while it is stuck nothing more
is tried, and what is posted meanwhile is told as not saved.

Two drivers that write to one folder would both believe to be alone. So each claims the folder when
its gang begins, and a commit is refused once another one has claimed it since.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from rayline.actors.saving import Shard, Storage, Written
from rayline.checkpoint import (
    CheckpointHeader,
    Location,
    Snapshot,
    commit,
    discard,
    holds,
    located,
    make_folder,
    write_own,
    writing_folder,
)
from rayline.errors import CheckpointError

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Committer:
    """Collects what ranks have written, and commits what is whole."""

    storage: Storage
    _reports: dict[int, dict[int, str]] = field(default_factory=lambda: defaultdict(dict))
    """By step and rank."""

    def take(self, rank: int, header: CheckpointHeader, report: str) -> Written | None:
        """A rank's shard of a step was written. Returns what became of the step; None while shards
        are missing."""
        mine = self._reports[header.step]
        mine[rank] = report
        if len(mine) < self.storage.world_size:
            return None
        del self._reports[header.step]
        for older in [step for step in self._reports if step < header.step]:
            del self._reports[older]
        reports = [mine[one] for one in range(self.storage.world_size)]
        return _committed(self.storage, header, reports)


def commit_shards(storage: Storage, shards: Sequence[Shard]) -> Written:
    """Make the shards of all ranks, which hold one step, a checkpoint."""
    return _committed(storage, shards[0].header, [shard.report for shard in shards])


def _committed(storage: Storage, header: CheckpointHeader, reports: Sequence[str]) -> Written:
    root, folder = located(storage.root), folder_of(storage, header.step)
    try:
        ours = holds(root, storage.claim)
    except CheckpointError as wrong:
        return Written(header.step, wrong.problem)
    if not ours:
        discard(folder)
        return Written(header.step, f"another run writes to {root} now")
    return Written(header.step, commit(root, folder, header, reports, storage.keep))


def folder_of(storage: Storage, step: int) -> Location:
    """What a step's shards are written to. It is another one for every epoch and claim, so that
    what one left over cannot mix with the next."""
    token = hashlib.sha256(f"{storage.claim} {storage.epoch}".encode()).hexdigest()[:8]
    return writing_folder(located(storage.root), step, token)


def write_posted(storage: Storage, rank: int, posted: Snapshot) -> str:
    """Write one rank's shard; the report for the committer."""
    step = posted.header.step
    folder = folder_of(storage, step)
    try:
        make_folder(folder)
    except OSError as wrong:
        log.warning("the folder of step %d cannot be made: %s", step, wrong)
    return write_own(folder, posted.pieces, rank, storage.bytes_per_s)


class Writing:
    """One rank's shard on its way to storage, in a thread of its own."""

    def __init__(self, storage: Storage, rank: int, posted: Snapshot) -> None:
        self.step = posted.header.step
        self._storage = storage
        self._report: str | None = None
        self._thread = threading.Thread(target=self._write, args=(rank, posted), daemon=True)
        self._thread.start()

    def report(self) -> str | None:
        """What the committer is told; None where the shard took longer than it may."""
        self._thread.join(self._storage.give_up_after_s)
        return self._report

    @property
    def stuck(self) -> bool:
        """Whether it is still being written."""
        return self._thread.is_alive()

    def _write(self, rank: int, posted: Snapshot) -> None:
        self._report = write_posted(self._storage, rank, posted)


def given_up(storage: Storage, rank: int, step: int) -> Written:
    """What became of a step whose shard took too long."""
    took = f"storage took over {storage.give_up_after_s:g} s for the part of rank {rank}"
    return Written(step, f"{took}, so it was given up (checkpoint.give_up_after_s)")

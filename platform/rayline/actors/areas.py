"""One node's snapshots, as its keeper has them: memory that outlives the workers that fill it.

An area is an anonymous file in memory (memfd_create(2)). The workers of the node reach it as
/proc/PID/fd/N, map it and write there at the speed of memory; the keeper never touches what they
write unless asked. When a worker is killed its area stands; when the keeper and the workers are
gone, the kernel frees it: nothing is left to clean up.

What ranks post for storage is written from here too (see `rayline.actors.storage`), in another
thread: storage may be slow or full, and no step waits for it.

So that the loss of a node loses nothing, each keeper has a peer on another node and sends it every
new generation, in a thread of its own. A rank overwrites its older generation only once the newer
one was sent: so what the peer has is at most one behind, and all ranks have one step in common.
"""

from __future__ import annotations

import mmap
import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import ray
from numpy.typing import NDArray
from ray.actor import ActorHandle

from rayline.actors.keeper import Keeper
from rayline.actors.saving import Shard, Storage, Written
from rayline.actors.storage import Committer, Writing, given_up, write_posted
from rayline.checkpoint import (
    OUTBOX,
    CheckpointHeader,
    Snapshot,
    clear,
    generation_bytes,
    is_sent,
    mark_at,
    marks,
    newest,
    note_sent,
    put_generation,
    snapshot_at,
)
from rayline.errors import CheckpointError
from rayline.spec import SnapshotMark

_LOOK_S = 0.05
"""How often a keeper looks for new generations to send to its peer."""


@dataclass(slots=True)
class _Area:
    file: int
    """Descriptor of the file in memory."""

    def mapped(self) -> mmap.mmap | None:
        """The file as it is now; None while it is empty. The caller closes it."""
        size_bytes = os.fstat(self.file).st_size
        return mmap.mmap(self.file, size_bytes) if size_bytes else None


class Areas:
    """Areas by rank: of the workers on this node, and copies of another node's. What each method is
    for stands at the keeper's."""

    def __init__(self) -> None:
        self._own: dict[int, _Area] = {}
        self._copies: dict[int, _Area] = {}
        self._peer: ActorHandle[Keeper] | None = None
        self._sender: threading.Thread | None = None
        self._writer: threading.Thread | None = None
        self._storage: Storage | None = None
        self._stuck: Writing | None = None
        self._commits_at: ActorHandle[Keeper] | None = None
        self._committer: Committer | None = None
        self._news: deque[Written] = deque()

    def open(self, ranks: Sequence[int]) -> dict[int, str]:
        """Where each of the ranks, which work on this node, maps its area. What there is of them
        already, here or as a copy, they find in it."""
        for rank in ranks:
            if rank not in self._own:
                copied = rank in self._copies
                self._own[rank] = self._copies.pop(rank) if copied else _new_area(rank)
        return {rank: f"/proc/{os.getpid()}/fd/{self._own[rank].file}" for rank in ranks}

    def marks(self) -> dict[int, list[SnapshotMark]]:
        """The whole generations of every area, own or copied."""
        found = {}
        for rank, area in {**self._copies, **self._own}.items():
            mapped = area.mapped()
            if mapped is not None:
                with mapped:
                    found[rank] = list(marks(mapped).values())
        return found

    def send_to(self, peer: ActorHandle[Keeper] | None) -> None:
        """Keep a copy of every new generation at `peer` from now on; None ends that."""
        # A new peer has nothing yet.
        self._note_sent(False)
        self._peer = peer
        if peer is not None and self._sender is None:
            self._sender = threading.Thread(target=self._send_for_ever, daemon=True)
            self._sender.start()

    def write_to(self, storage: Storage, committer: ActorHandle[Keeper] | None) -> None:
        """Write what ranks post to `storage` from now on; `committer` commits it, None where this
        keeper does."""
        self._storage, self._commits_at = storage, committer
        self._committer = Committer(storage) if committer is None else None
        if self._writer is None:
            self._writer = threading.Thread(target=self._write_for_ever, daemon=True)
            self._writer.start()

    def written(self, storage: Storage, rank: int, header: CheckpointHeader, report: str) -> None:
        """A rank's shard lies in the folder of its step; told to the committer."""
        if self._committer is not None and self._committer.storage == storage:
            told = self._committer.take(rank, header, report)
            if told is not None:
                self._news.append(told)

    def store(self, storage: Storage, rank: int, mark: SnapshotMark) -> Shard:
        """Write a snapshot that is kept here as a shard of a checkpoint. Raises CheckpointError
        where it is not as it was written."""
        for area in [found[rank] for found in (self._own, self._copies) if rank in found]:
            mapped = area.mapped()
            numbers = {} if mapped is None else {its: one for one, its in marks(mapped).items()}
            if mapped is None or mark not in numbers:
                continue
            kept = snapshot_at(mapped, numbers[mark])
            if kept is not None:
                return Shard(kept.header, write_posted(storage, rank, kept), kept.reports)
        raise CheckpointError(
            f"snapshot of rank {rank}", f"step {mark.step} is not as it was written"
        )

    def news(self) -> list[Written]:
        """What became of checkpoints since the last call."""
        return [self._news.popleft() for _ in range(len(self._news))]

    def take(self, rank: int, mark: SnapshotMark, generation: NDArray[np.uint8]) -> None:
        """A copy of another node's generation."""
        if rank not in self._copies:
            self._copies[rank] = _new_area(rank)
        put_generation(self._copies[rank].file, mark, generation.data)

    def hand_over(self, rank: int, to: ActorHandle[Keeper]) -> None:
        """Send every whole generation of a rank that now works on another node to its keeper;
        returns once they are there."""
        area = self._own.pop(rank, None) or self._copies.get(rank)
        mapped = None if area is None else area.mapped()
        if mapped is None:
            return
        with mapped:
            for number, mark in sorted(marks(mapped).items(), key=lambda pair: pair[1].step):
                _send(to, rank, mapped, number, mark)

    def _write_for_ever(self) -> None:
        while True:
            time.sleep(_LOOK_S)
            storage = self._storage
            for rank, area in list(self._own.items()):
                if storage is not None:
                    self._write_posted(storage, rank, area)

    def _write_posted(self, storage: Storage, rank: int, area: _Area) -> None:
        mapped = area.mapped()
        if mapped is None or mark_at(mapped, OUTBOX) is None:
            return
        posted = snapshot_at(mapped, OUTBOX)
        if posted is not None:
            self._write_shard(storage, rank, posted)
        else:
            mark = mark_at(mapped, OUTBOX)
            step = 0 if mark is None else mark.step
            self._news.append(Written(step, f"what rank {rank} posted was damaged in memory"))
        clear(mapped, OUTBOX)

    def _write_shard(self, storage: Storage, rank: int, posted: Snapshot) -> None:
        header = posted.header
        if self._stuck is not None and self._stuck.stuck:
            stuck = f"storage has not come back from step {self._stuck.step}"
            self._news.append(Written(header.step, stuck))
            return
        writing = Writing(storage, rank, posted)
        report = writing.report()
        if report is None:
            self._stuck = writing
            self._news.append(given_up(storage, rank, header.step))
        elif self._commits_at is None:
            self.written(storage, rank, header, report)
        else:
            self._commits_at.written.remote(storage, rank, header, report)

    def _send_for_ever(self) -> None:
        while True:
            time.sleep(_LOOK_S)
            peer = self._peer
            if peer is None:
                # No rank waits for a peer that is gone: its loss ends this beginning of the gang.
                self._note_sent(True)
                continue
            for rank, area in list(self._own.items()):
                try:
                    self._send_newest(peer, rank, area)
                except ray.exceptions.RayError:
                    # The peer's node went away; the gang names another when it begins again.
                    self._peer = None
                    break

    def _note_sent(self, sent: bool) -> None:
        """Of all that the ranks of this node keep."""
        for area in list(self._own.values()):
            mapped = area.mapped()
            if mapped is not None:
                with mapped:
                    for number in marks(mapped):
                        note_sent(mapped, number, sent)

    def _send_newest(self, peer: ActorHandle[Keeper], rank: int, area: _Area) -> None:
        mapped = area.mapped()
        if mapped is None:
            return
        with mapped:
            number = newest(mapped)
            if number is None or is_sent(mapped, number):
                return
            if _send(peer, rank, mapped, number, marks(mapped)[number]):
                note_sent(mapped, number)


def _send(
    to: ActorHandle[Keeper], rank: int, mapped: mmap.mmap, number: int, mark: SnapshotMark
) -> bool:
    """Copy one generation to another keeper; False where it was overwritten meanwhile."""
    with generation_bytes(mapped, number) as content:
        copy = ray.put(np.frombuffer(content, dtype=np.uint8))
    if marks(mapped).get(number) != mark:
        return False
    ray.get(to.take.remote(rank, mark, copy))
    return True


def _new_area(rank: int) -> _Area:
    return _Area(os.memfd_create(f"rayline-snapshot-{rank}"))

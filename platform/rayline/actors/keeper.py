"""The Ray actor that keeps one node's snapshots; what it does with them stands in `areas`."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from rayline.actors.saving import Shard, Storage, Written
from rayline.spec import SnapshotMark
from rayline.train.imports import lasting_imports

if TYPE_CHECKING:
    from ray.actor import ActorHandle

    from rayline.checkpoint import CheckpointHeader


class Keeper:
    """One process on each node of a gang, made and told by `rayline.actors.keepers`."""

    def __init__(self) -> None:
        # torch is imported here, in the keeper: the driver does without.
        with lasting_imports():
            from rayline.actors.areas import Areas

        self._areas = Areas()

    def open(self, ranks: Sequence[int]) -> dict[int, str]:
        """Where each of the ranks, which work on this node, maps its area. What there is of them
        already, here or as a copy, they find in it."""
        return self._areas.open(ranks)

    def marks(self) -> dict[int, list[SnapshotMark]]:
        """The whole generations of every area, own or copied."""
        return self._areas.marks()

    def send_to(self, peer: ActorHandle[Keeper] | None) -> None:
        """Keep a copy of every new generation at `peer` from now on; None ends that."""
        self._areas.send_to(peer)

    def take(self, rank: int, mark: SnapshotMark, generation: NDArray[np.uint8]) -> None:
        """A copy of another node's generation."""
        self._areas.take(rank, mark, generation)

    def hand_over(self, rank: int, to: ActorHandle[Keeper]) -> None:
        """Send every whole generation of a rank that now works on another node to its keeper;
        returns once they are there."""
        self._areas.hand_over(rank, to)

    def claim(self, root: str) -> str:
        """Make the folder of checkpoints, named by path or address, this gang's; returns the claim.
        Raises OSError, or CheckpointError behind an address."""
        from rayline.checkpoint import claim, located

        return claim(located(root))

    def write_to(self, storage: Storage, committer: ActorHandle[Keeper] | None) -> None:
        """Write what ranks post to `storage` from now on; `committer` commits it, None where this
        keeper does."""
        self._areas.write_to(storage, committer)

    def written(self, storage: Storage, rank: int, header: CheckpointHeader, report: str) -> None:
        """A rank's shard lies in the folder of its step; told to the committer."""
        self._areas.written(storage, rank, header, report)

    def store(self, storage: Storage, rank: int, mark: SnapshotMark) -> Shard:
        """Write a snapshot that is kept here as a shard of a checkpoint. Raises CheckpointError
        where it is not as it was written."""
        return self._areas.store(storage, rank, mark)

    def commit(self, storage: Storage, shards: Sequence[Shard]) -> Written:
        """Make a checkpoint of every rank's shard of one step, in the order of ranks."""
        from rayline.actors.storage import commit_shards

        return commit_shards(storage, shards)

    def news(self) -> list[Written]:
        """What became of checkpoints since the last call."""
        return self._areas.news()

    def end_process(self, pid: int) -> None:
        """End a worker of this node that does not react to Ray."""
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)

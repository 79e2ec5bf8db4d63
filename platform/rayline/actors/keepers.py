"""The keepers of a gang's nodes, one each: which snapshot all ranks can go on from, and where.

Nothing here touches a tensor: keepers are asked for marks, told their peer, and told to hand over
what a rank needs that now works on another node.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from rayline.actors.crew import beside
from rayline.actors.keeper import Keeper
from rayline.actors.saving import Shard, Storage, Written
from rayline.actors.seating import Opened
from rayline.errors import CheckpointError
from rayline.spec import JobSpec, SnapshotMark

log = logging.getLogger(__name__)

_START_TIMEOUT_S = 120.0

Held = Mapping[int, Mapping[str, Sequence[SnapshotMark]]]
"""Rank to node to the whole snapshots that the node's keeper has of it."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A snapshot that became a checkpoint."""

    step: int
    reports: list[str]
    """Rank 0's newest, as JSON: the driver may lack some of them."""


class Keepers:
    """Made for one job; `end` ends them, and frees what they kept."""

    def __init__(self, job: JobSpec) -> None:
        self._job = job
        self._claim = ""
        self._storage: Storage | None = None
        self._keepers: dict[str, ActorHandle[Keeper]] = {}
        self._asked: dict[ActorHandle[Keeper], Any] = {}

    def stand(self, nodes: Iterable[str]) -> None:
        """Have a keeper on each of the nodes; returns at once."""
        for node in nodes:
            if node not in self._keepers:
                remote: Any = ray.remote(Keeper)
                self._keepers[node] = remote.options(**beside(node)).remote()

    def open(self, node_of_rank: Sequence[str], epoch: int) -> Opened:
        """Areas for ranks on these nodes, which have keepers. Raises RayError where one of those
        does not answer, CheckpointError where the folder of checkpoints cannot be claimed."""
        held = self._held()
        mark = newest_common(held, len(node_of_rank))
        areas: dict[int, str] = {}
        if mark is not None:
            for rank, source in moves(held, mark, node_of_rank):
                to = self._keepers[node_of_rank[rank]]
                ray.get(self._keepers[source].hand_over.remote(rank, to))
        nodes = sorted(set(node_of_rank))
        for node in nodes:
            here = [rank for rank, its in enumerate(node_of_rank) if its == node]
            opened: Any = self._keepers[node].open.remote(here)
            areas |= ray.get(opened, timeout=_START_TIMEOUT_S)
        self._let_write(node_of_rank, epoch)
        sent = self._job.recovery.peer_copies and len(nodes) > 1
        if sent:
            for node, peer in zip(nodes, [*nodes[1:], nodes[0]], strict=True):
                self._keepers[node].send_to.remote(self._keepers[peer])
        return Opened(areas, mark, sent)

    def end_process(self, node: str, pid: int) -> None:
        """End a process that hangs, where a keeper stands beside it: Ray asks a process to end
        itself, and only kills it after seconds. Returns at once."""
        if node in self._keepers:
            self._keepers[node].end_process.remote(pid)

    def news(self) -> list[Written]:
        """What became of checkpoints since the last call, without waiting for a busy keeper."""
        told: list[Written] = []
        for keeper in list(self._keepers.values()):
            if keeper not in self._asked:
                self._asked[keeper] = keeper.news.remote()
            ready, _ = ray.wait([self._asked[keeper]], timeout=0)
            if ready:
                answer = self._asked.pop(keeper)
                # A keeper that is gone has no news; it is missed at the next beginning.
                with suppress(RayError):
                    told += ray.get(answer)
        return told

    def _let_write(self, node_of_rank: Sequence[str], epoch: int) -> None:
        """Have the keepers write what ranks post, that of rank 0's node commit it."""
        root = self._job.checkpoint_directory
        committer: Any = self._keepers[node_of_rank[0]]
        try:
            self._claim = self._claim or ray.get(committer.claim.remote(root))
        except RayTaskError as wrong:
            own = self._job.checkpoint.directory is not None
            said = wrong.cause.problem if isinstance(wrong.cause, CheckpointError) else wrong.cause
            raise CheckpointError(
                "checkpoint.directory" if own else "output_dir",
                f"checkpoints cannot be written there: {said}",
                value=root,
                fix="give the workers access to it, or name another",
            ) from None
        self._storage = storage = Storage(
            root=root,
            keep=self._job.checkpoint.keep,
            world_size=len(node_of_rank),
            claim=self._claim,
            epoch=epoch,
            give_up_after_s=self._job.checkpoint.give_up_after_s,
            bytes_per_s=self._job.checkpoint.write_bytes_per_s,
        )
        committer.write_to.remote(storage, None)
        for node in sorted(set(node_of_rank) - {node_of_rank[0]}):
            self._keepers[node].write_to.remote(storage, committer)

    def store(self) -> Stored | None:
        """Make the newest snapshot that all ranks have a checkpoint on storage, for a plan that
        cannot take it from memory; None where there is none, or where it cannot be written."""
        storage = self._storage
        if storage is None:
            return None
        held = self._held()
        mark = newest_common(held, storage.world_size)
        if mark is None:
            return None
        # No beginning of a gang writes to this folder.
        apart = replace(storage, epoch=0)
        nodes = [_holder(held, rank, mark) for rank in range(storage.world_size)]
        asked: list[Any] = [
            self._keepers[node].store.remote(apart, rank, mark) for rank, node in enumerate(nodes)
        ]
        try:
            shards: list[Shard] = ray.get(asked)
            committing: Any = self._keepers[nodes[0]].commit.remote(apart, shards)
            written: Written = ray.get(committing)
        except (RayError, CheckpointError) as wrong:
            log.warning("the snapshot of step %d could not be stored: %s", mark.step, wrong)
            return None
        log.info("checkpoint: %s", written)
        return None if written.problem else Stored(mark.step, shards[0].reports)

    def end(self) -> None:
        """End every keeper. Never raises; may be called more than once."""
        for keeper in self._keepers.values():
            ray.kill(keeper, no_restart=True)
        self._keepers.clear()

    def _held(self) -> Held:
        """What each keeper has; one that does not answer has gone, and with it what it kept."""
        asked: dict[str, Any] = {
            node: keeper.marks.remote() for node, keeper in self._keepers.items()
        }
        held: dict[int, dict[str, Sequence[SnapshotMark]]] = {}
        for node, answer in asked.items():
            try:
                marks = ray.get(answer, timeout=_START_TIMEOUT_S)
            except RayError as wrong:
                log.warning("the snapshots on node %s are lost: %s", node[:8], wrong)
                del self._keepers[node]
                continue
            for rank, found in marks.items():
                held.setdefault(rank, {})[node] = found
        return held


def newest_common(held: Held, world_size: int) -> SnapshotMark | None:
    """The newest snapshot that every rank has somewhere: the state to go on from. None where there
    is none. Ranks write in step, so with two generations each there is one once all have written
    twice."""
    common: set[SnapshotMark] | None = None
    for rank in range(world_size):
        mine = {mark for marks in held.get(rank, {}).values() for mark in marks}
        common = mine if common is None else common & mine
    return max(common or (), key=lambda mark: (mark.epoch, mark.step), default=None)


def moves(held: Held, mark: SnapshotMark, node_of_rank: Sequence[str]) -> list[tuple[int, str]]:
    """The ranks whose node lacks `mark`, each with a node that has it."""
    found = []
    for rank, node in enumerate(node_of_rank):
        having = [place for place, marks in held[rank].items() if mark in marks]
        if node not in having:
            found.append((rank, _holder(held, rank, mark)))
    return found


def _holder(held: Held, rank: int, mark: SnapshotMark) -> str:
    """A node that has `mark` of a rank."""
    return min(place for place, marks in held[rank].items() if mark in marks)

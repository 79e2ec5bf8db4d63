"""Who stands where: from the plan and the workers' whereabouts to what each worker is told. No Ray.

Ranks are the plan's, tensor innermost; a tensor group shares a bundle. What depends on the node
(the local rank, the GPUs in sight) is counted by Ray's node, what depends on the machine (compute
threads) by its address: on a simulated cluster several nodes share one machine.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rayline.errors import PlacementError
from rayline.spec import ParallelPlan, SnapshotMark, WorkerContext

Device = Literal["cpu", "cuda"]


@dataclass(frozen=True, slots=True)
class Whereabouts:
    """Where a worker came to stand."""

    node_id: str
    address: str
    pid: int
    cores: int
    """CPU cores that its process may use."""
    gpus: tuple[str, ...]
    """Ids of the GPUs that Ray gave it."""


@dataclass(frozen=True, slots=True)
class Share:
    """What one worker may use of its host."""

    local_rank: int
    workers: int
    """Workers on its node, itself among them."""
    threads: int
    """Compute threads: the host's cores, divided among its workers."""
    visible_gpus: tuple[str, ...]
    """GPUs of all the node's workers, in the order of local ranks; empty without GPUs."""


@dataclass(frozen=True, slots=True)
class Opened:
    """Where the ranks of a gang keep their snapshots."""

    areas: Mapping[int, str]
    """File in memory by rank; empty where the job keeps none."""
    mark: SnapshotMark | None
    """The snapshot that every rank finds in its area and goes on from."""
    sent: bool = False
    """Whether snapshots are sent to other nodes, so that ranks wait for it before the next one."""


NO_SNAPSHOTS = Opened({}, None)


def bundle_of_rank(plan: ParallelPlan, bundle_order: Sequence[int]) -> list[int]:
    """Index of the bundle that each rank's worker starts in."""
    return [bundle_order[rank // plan.tensor] for rank in range(plan.world_size)]


def shares(places: Sequence[Whereabouts], most_threads: int | None = None) -> list[Share]:
    """Each rank's share of its host; `places` are in the order of ranks. A gang that shares its
    hosts with others of its kind, as trials do, has `most_threads` for each worker: idle threads
    that spin take the others' cores."""
    on_host = Counter(place.address for place in places)
    on_node = Counter(place.node_id for place in places)
    gpus: dict[str, list[str]] = {}
    for place in places:
        seen = gpus.setdefault(place.node_id, [])
        seen.extend(gpu for gpu in place.gpus if gpu not in seen)
    counted: Counter[str] = Counter()
    allotted = []
    for place in places:
        local_rank = counted[place.node_id]
        counted[place.node_id] += 1
        threads = max(1, place.cores // on_host[place.address])
        if most_threads is not None:
            threads = min(threads, max(1, most_threads))
        mates = on_node[place.node_id]
        allotted.append(Share(local_rank, mates, threads, tuple(gpus[place.node_id])))
    return allotted


def one_device(devices: Sequence[Device]) -> Device:
    """What the whole gang computes on. Raises PlacementError where the workers differ."""
    kinds = set(devices)
    if len(kinds) > 1:
        ranks = [rank for rank, device in enumerate(devices) if device == "cpu"]
        raise PlacementError(
            "resources.device",
            f"torch finds no GPU on the nodes of ranks {ranks}, but on the others it does",
            allowed="GPUs on every node of the gang, or on none",
            fix="mend the driver or torch's build on those nodes, or --set resources.device=cpu",
        )
    return kinds.pop()


def contexts(
    plan: ParallelPlan,
    allotted: Sequence[Share],
    device: Device,
    master: tuple[str, int],
    epoch: int = 1,
    snapshots: Opened = NO_SNAPSHOTS,
    has_stepped: bool = False,
) -> list[WorkerContext]:
    """What each rank is told at its start, in the order of ranks. `master`: address and port of
    the rendezvous; `has_stepped`: whether an earlier beginning finished a step."""
    mark = snapshots.mark
    return [
        WorkerContext(
            rank=rank,
            world_size=plan.world_size,
            local_rank=share.local_rank,
            coordinate=plan.coordinate(rank),
            master_address=master[0],
            master_port=master[1],
            device=device,
            epoch=epoch,
            has_stepped=has_stepped,
            snapshot_area=snapshots.areas.get(rank),
            snapshots_sent=snapshots.sent,
            resume_step=None if mark is None else mark.step,
            workers_on_node=share.workers,
        )
        for rank, share in enumerate(allotted)
    ]

"""Room for replicas: refused where no node could ever hold them, waited for a little where
something else is about to give it back, explained while they wait.

The judgement is launch's, as it is for gangs; here a replica becomes what it asks for.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence

import grpc
import ray

from rayline.errors import PlacementError
from rayline.launch.capacity import Bundle, Node, nodes_text
from rayline.launch.cluster_facts import ClusterFacts
from rayline.launch.cluster_state import look_at_cluster
from rayline.launch.pending import Pending, Wanted, why_pending
from rayline.serving.preflight import check_room
from rayline.serving.settings import placement_strategy, replica_bundles
from rayline.spec import Device, ServeSpec

log = logging.getLogger(__name__)

FREE_WAIT_S = 8.0
"""How long to wait for resources that something else is about to give back, such as a job that
has just ended."""
_POLL_S = 0.5
_LOOK_S = 5.0
_REMEDIES: Mapping[str, str] = {
    "GPU": "lower engine.tensor_parallel_size, or add nodes that have so many",
    "CPU": "lower cpus_per_replica, or add larger nodes",
}


def replicas_wanted(spec: ServeSpec, device: Device, replicas: int) -> Wanted:
    """What replicas ask for: each lies on one node, unless its stages may span several."""
    bundles = replica_bundles(spec, device)
    if placement_strategy(spec) == "PACK":
        return Wanted(bundles * replicas, remedies=_REMEDIES)
    names = {name for bundle in bundles for name in bundle}
    whole: Bundle = {
        name: round(sum(each.get(name, 0.0) for each in bundles), 4) for name in sorted(names)
    }
    return Wanted([whole] * replicas, remedies=_REMEDIES)


def reserve_room(spec: ServeSpec, device: Device, least: int, now: int) -> None:
    """Return when `now` replicas have room. Raises PlacementError where `least` could never have
    it, or where something else holds it and does not give it back. Called by the driver; what nodes
    of an autoscaler may yet hold is waited for by Serve."""
    facts = look_at_cluster()
    never = why_pending(replicas_wanted(spec, device, least), facts)
    if facts.scaling is None:
        everything = [*facts.nodes, *(each.node for each in facts.leaving)]
        check_room(replica_bundles(spec, device), least, [node.total for node in everything])
    elif never.kind in ("impossible", "label"):
        raise _refused(spec, never, facts.nodes)
    deadline_s = time.monotonic() + FREE_WAIT_S
    wanted = replicas_wanted(spec, device, now)
    while (why := why_pending(wanted, facts)).kind in ("held", "leaving"):
        if time.monotonic() > deadline_s:
            raise _refused(spec, why, facts.nodes)
        time.sleep(_POLL_S)
        facts = look_at_cluster()


def _refused(spec: ServeSpec, why: Pending, nodes: Sequence[Node]) -> PlacementError:
    return PlacementError(
        spec.name, f"{why.reason}. {nodes_text(nodes, ['GPU', 'CPU'])}", fix=why.fix
    )


def replicas_watch(spec: ServeSpec, device: Device) -> Callable[[], None]:
    """A function to call now and then while replicas come up: it says why some of them wait for
    room, where they do, each reason once."""
    looked_s = time.monotonic()
    told = ""
    mine = [_rounded(bundle) for bundle in replica_bundles(spec, device)]

    def look() -> None:
        nonlocal looked_s, told
        if time.monotonic() - looked_s < _LOOK_S:
            return
        looked_s = time.monotonic()
        try:
            facts = look_at_cluster()
        except (ray.exceptions.RayError, grpc.RpcError, OSError, RuntimeError):
            # Ray is asked again.
            return
        if not _waits(facts, mine):
            return
        why = why_pending(replicas_wanted(spec, device, 1), facts)
        if why.fix != told:
            told = why.fix
            log.warning("a replica of %s waits: %s", spec.name, why)

    return look


def _waits(facts: ClusterFacts, bundles: Sequence[Bundle]) -> bool:
    """Whether Ray has been asked for such bundles and has no place for them."""
    return any(_rounded(each) in bundles for each in facts.asked)


def _rounded(bundle: Mapping[str, float]) -> Bundle:
    return {name: round(amount, 4) for name, amount in bundle.items() if amount}

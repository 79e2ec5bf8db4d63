"""What Ray knows of its cluster just now, read within seconds from a process that has joined it.

Ray has no public call for what is free on each node, for who holds it, nor for what its autoscaler
may do. Nodes are read from the autoscaler's status, the source of `ray status`
(ray.autoscaler.v2.sdk), placement groups, actors and jobs from the tables behind `ray.util.state`,
which itself needs a dashboard, and the limits from the file that the autoscaler on this node was
started with (Ray 2.60; tests/launch/test_cluster_state.py holds all of it).
"""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import psutil
import ray
import yaml
from ray._private.state import state as global_state
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.autoscaler.v2.schema import ClusterStatus, NodeInfo
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.core.generated import autoscaler_pb2, gcs_pb2
from ray.experimental.internal_kv import _internal_kv_get

from rayline.launch.capacity import Bundle, Node
from rayline.launch.cluster_facts import (
    ClusterFacts,
    EnvironmentFailure,
    Holder,
    Launch,
    LaunchFailure,
    Leaving,
    NodeType,
    Scaling,
)

_TABLES: Any = gcs_pb2
_AUTOSCALER: Any = autoscaler_pb2
"""Protocol buffers make their classes when they are imported: no checker of types sees them."""
_STATUS_TIMEOUT_S = 3
_KNOCK_TIMEOUT_S = 1.0
_KNOCKED_NODES = 256
"""Of a larger cluster only so many are asked whether they answer."""
_HEALTH_CHECK = "/grpc.health.v1.Health/Check"
_V1_STATUS_KEY = "__autoscaling_status"
"""Where the older autoscaler keeps its status, as JSON."""
_UNTYPED_NODE = "node_"
"""How Ray calls a node (followed by its id) that no autoscaler launched."""


def look_at_cluster() -> ClusterFacts:
    """The facts of the cluster that this process has joined. Takes at most about 4 s; raises what
    Ray raises where its control store does not answer."""
    status = cluster_status()
    going: dict[str, int] = global_state.get_draining_nodes()
    nodes = [node_of(each) for each in [*status.active_nodes, *status.idle_nodes]]
    silent = _silent_nodes()
    jobs = submitted_jobs()
    actors = _actors()
    leaving = [
        Leaving(node, "silent" if node.id in silent else "draining", _at_s(going.get(node.id)))
        for node in nodes
        if node.id in silent or node.id in going
    ]
    return ClusterFacts(
        nodes=tuple(node for node in nodes if node.id not in going and node.id not in silent),
        leaving=tuple(leaving),
        holders=(*_groups(jobs), *_loose_actors(actors, jobs)),
        scaling=scaling_of(status),
        environment_failures=tuple(_environment_failures(actors)),
        asked=tuple(_asked(status)),
        now_s=time.time(),
    )


def cluster_status() -> ClusterStatus:
    """The autoscaler's status, which is there without an autoscaler too."""
    return get_cluster_status(ray.get_runtime_context().gcs_address, timeout=_STATUS_TIMEOUT_S)


def node_of(info: NodeInfo) -> Node:
    """A node of the autoscaler's status. Its figures are up to a second old."""
    return Node(
        info.node_id or "",
        info.ip_address,
        info.total_resources(),
        info.available_resources(),
        info.labels or {},
    )


def _at_s(at_ms: int | None) -> float | None:
    return at_ms / 1000 if at_ms else None


def _silent_nodes() -> set[str]:
    """Nodes that Ray takes for alive and whose node manager does not answer."""
    known: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    alive = [node for node in known if node["Alive"]][:_KNOCKED_NODES]
    if not alive:
        return set()
    with ThreadPoolExecutor(max_workers=min(64, len(alive))) as pool:
        heard = list(pool.map(lambda node: answers(node, _KNOCK_TIMEOUT_S), alive))
    return {node["NodeID"] for node, spoke in zip(alive, heard, strict=True) if not spoke}


def answers(node: Mapping[str, Any], timeout_s: float) -> bool:
    """Whether a node's manager answers the question that Ray's control store asks it too. Not
    whether it listens: for a process that is stopped the kernel goes on to accept connections."""
    address = f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}"
    with grpc.insecure_channel(address) as channel:
        try:
            channel.unary_unary(_HEALTH_CHECK)(b"", timeout=timeout_s)
        except grpc.RpcError as wrong:
            silent = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
            # To be refused is an answer.
            return wrong.code() not in silent
    return True


def _asked(status: ClusterStatus) -> Iterator[Bundle]:
    """Of placement groups, tasks and actors alike."""
    demands = status.resource_demands
    for demand in [*demands.placement_group_demand, *demands.ray_task_actor_demand]:
        for request in demand.bundles_by_count:
            yield dict(request.bundle)


def submitted_jobs() -> dict[str, str]:
    """Ray's id of each driver to the id that it was submitted as."""
    table = global_state._connect_and_get_accessor().get_job_table(
        skip_submission_job_info_field=True, skip_is_running_tasks_field=True
    )
    parsed = [_TABLES.JobTableData.FromString(each) for each in table]
    return {
        each.job_id.hex(): each.config.metadata["job_submission_id"]
        for each in parsed
        if "job_submission_id" in each.config.metadata
    }


def _groups(jobs: Mapping[str, str]) -> Iterator[Holder]:
    """The placement groups that have their room."""
    table = global_state._connect_and_get_accessor().get_placement_group_table()
    for raw in table:
        group = _TABLES.PlacementGroupTableData.FromString(raw)
        if group.state != _TABLES.PlacementGroupTableData.CREATED:
            continue
        held: dict[str, Bundle] = {}
        for bundle in group.bundles:
            amounts = held.setdefault(bundle.node_id.hex(), {})
            for name, amount in bundle.unit_resources.items():
                amounts[name] = amounts.get(name, 0.0) + amount
        job = jobs.get(group.creator_job_id.hex(), "")
        name = group.name or f"placement group {group.placement_group_id.hex()[:8]}"
        yield Holder(_who(name, job), held, job)


def _actors() -> list[Any]:
    """Ray's records of its actors; of those that died, Ray keeps the newest."""
    table = global_state._connect_and_get_accessor().get_actor_table(None, None)
    return [_TABLES.ActorTableData.FromString(each) for each in table]


def _loose_actors(actors: Iterable[Any], jobs: Mapping[str, str]) -> Iterator[Holder]:
    """The actors that hold something outside of any placement group."""
    for actor in actors:
        if actor.state != _TABLES.ActorTableData.ALIVE or actor.placement_group_id.strip(b"\xff"):
            continue
        held: Bundle = {name: amount for name, amount in actor.required_resources.items() if amount}
        if held:
            job = jobs.get(actor.job_id.hex(), "")
            name = f"actor {actor.name or actor.class_name or actor.actor_id.hex()[:8]}"
            yield Holder(_who(name, job), {actor.address.node_id.hex(): held}, job)


def _who(name: str, job: str) -> str:
    return f"{name} of job {job}" if job else name


def _environment_failures(actors: Iterable[Any]) -> Iterator[EnvironmentFailure]:
    """Actors that died for want of their environment, the newest first."""
    for actor in sorted(actors, key=lambda each: -each.end_time):
        if actor.state == _TABLES.ActorTableData.DEAD and actor.death_cause.HasField(
            "runtime_env_failed_context"
        ):
            error = actor.death_cause.runtime_env_failed_context.error_message
            name = actor.class_name or actor.actor_id.hex()[:8]
            yield EnvironmentFailure(name, actor.job_id.hex(), error, actor.end_time / 1000)


def scaling_of(status: ClusterStatus) -> Scaling | None:
    """What an autoscaler may do, whichever of Ray's two it is; None where there is none: a launcher
    gives the nodes that it starts a type, on a laptop and on a cluster made by hand there is none.
    """
    older = json.loads(_internal_kv_get(_V1_STATUS_KEY) or "{}").get("autoscaler_report") or {}
    counts: Counter[str] = Counter()
    if _typed((older.get("node_type_mapping") or {}).values()):
        counts.update(older.get("active_nodes") or {})
        launches = [*_v1_launches(older)]
        failures = [LaunchFailure(kind, f"its node {ip} failed") for ip, kind in _pairs(older)]
    else:
        running = [*status.active_nodes, *status.idle_nodes]
        counts.update(_typed(node.ray_node_type_name for node in running))
        launches = [*_v2_launches(status)]
        failures = [
            LaunchFailure(each.ray_node_type_name, each.details or "", each.failed_ts_s)
            for each in status.failed_launches
        ]
    if not counts and not launches and not failures:
        return None
    for launch in launches:
        counts[launch.node_type] += launch.count
    types, most_workers = _limits(counts)
    refused = () if types else tuple(_refused())
    return Scaling(types, tuple(launches), tuple(failures), most_workers, refused)


def _refused() -> Iterator[Bundle]:
    """What the newer autoscaler says it can launch nothing for, which its status leaves out."""
    client = GcsClient(address=ray.get_runtime_context().gcs_address)
    raw = client.get_cluster_status(timeout_s=_STATUS_TIMEOUT_S)
    state = _AUTOSCALER.GetClusterStatusReply.FromString(raw).autoscaling_state
    requests = list(state.infeasible_resource_requests)
    for gang in state.infeasible_gang_resource_requests:
        requests.extend(gang.requests)
        requests.extend(each for one in gang.bundle_selectors for each in one.resource_requests)
    for request in requests:
        yield dict(request.resources_bundle)


def _typed(names: Iterable[str]) -> list[str]:
    return [name for name in names if name and not name.startswith(_UNTYPED_NODE)]


def _v1_launches(report: Mapping[str, Any]) -> Iterator[Launch]:
    for kind, count in (report.get("pending_launches") or {}).items():
        yield Launch(kind, count)
    for node in report.get("pending_nodes") or []:
        yield Launch(node[1], 1, stage=str(node[2]))


def _pairs(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(str(node[0]), str(node[1])) for node in report.get("failed_nodes") or []]


def _v2_launches(status: ClusterStatus) -> Iterator[Launch]:
    for launch in status.pending_launches:
        yield Launch(launch.ray_node_type_name, launch.count, float(launch.request_ts_s))
    for node in status.pending_nodes:
        yield Launch(node.ray_node_type_name, 1, stage=(node.details or "starting").lower())


def _limits(counts: Mapping[str, int]) -> tuple[tuple[NodeType, ...], int | None]:
    """The types that the autoscaler on this node may launch, and how many in all; nothing where it
    runs elsewhere, as on Kubernetes, or its file is not ours to read."""
    file = _autoscaling_file()
    if file is None:
        return (), None
    with contextlib.suppress(OSError, yaml.YAMLError):
        config: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
        head = config.get("head_node_type")
        types = tuple(
            NodeType(
                name,
                {key: float(amount) for key, amount in (each.get("resources") or {}).items()},
                counts.get(name, 0),
                int(each.get("max_workers", config.get("max_workers", 0))),
                each.get("labels") or {},
            )
            for name, each in (config.get("available_node_types") or {}).items()
            if name != head
        )
        return types, config.get("max_workers")
    return (), None


def _autoscaling_file() -> Path | None:
    """The file that the autoscaler of this cluster was started with, where that runs here."""
    gcs_address = ray.get_runtime_context().gcs_address
    for process in psutil.process_iter(["cmdline"]):
        words = process.info["cmdline"] or []
        if not any(f"--gcs-address={gcs_address}" == word for word in words):
            continue
        named = [word for word in words if word.startswith("--autoscaling-config=")]
        if named:
            path = Path(named[0].partition("=")[2])
            with contextlib.suppress(psutil.Error):
                return Path(process.cwd()) / path.expanduser()
    return None

"""The Ray cluster: joined or started, and what its nodes have.

Ray has no public call for what is free on each node, nor for whether a cluster grows by itself.
Both are read from the autoscaler's status, the source of `ray status` (ray.autoscaler.v2.sdk, Ray
2.60); tests/actors/test_cluster.py holds that. Nor has it one for the nodes that are to go, which
Ray Train reads from the same place as this does. Nothing else here reads the cluster's state.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterable
from typing import Any

import grpc
import ray
from ray._private.state import state as global_state
from ray.autoscaler.v2.schema import ClusterStatus
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.experimental.internal_kv import _internal_kv_get

from rayline.actors.bundles import Node
from rayline.errors import PlacementError, SpecError

_UNTYPED_NODE = "node_"
"""How Ray calls a node (followed by its id) that no autoscaler launched."""
_KNOCK_TIMEOUT_S = 5.0
_HEALTH_CHECK = "/grpc.health.v1.Health/Check"
_DEATH_TIMEOUT_S = 60.0
_LOOK_S = 0.2
_V1_STATUS_KEY = "__autoscaling_status"
"""Where the older autoscaler keeps its status, as JSON."""


def ensure_ray(address: str | None = None) -> None:
    """Join the Ray cluster at `address`, or at RAY_ADDRESS, or start Ray on this machine.

    Does nothing where this process has joined one already. Inside a submitted job Ray sets
    RAY_ADDRESS itself. Called by the driver. Raises PlacementError where the cluster cannot be
    reached or refuses this user.
    """
    if ray.is_initialized():
        return
    if address is not None and address.startswith("ray://"):
        raise SpecError(
            "address",
            "a driver runs inside the cluster, not across Ray Client",
            value=address,
            allowed="auto, or host:port of the cluster's control store, from one of its nodes",
            fix="from outside: rayline submit SPEC --address http://HEAD:8265",
        )
    target = address or os.environ.get("RAY_ADDRESS") or "local"
    # A Ray that is started here gives way to everything else on the machine by default: its workers
    # run at niceness 15 (Ray's configuration flag worker_niceness), the daemons around them at 0.
    os.environ.setdefault("RAY_worker_niceness", "0")
    try:
        _knock(target)
        ray.init(address=target, log_to_driver=False, logging_level=logging.WARNING)
    except (ConnectionError, RuntimeError, ValueError, OSError) as wrong:
        reason = (str(wrong).strip() or type(wrong).__name__).splitlines()[0]
        raise PlacementError(
            "address",
            f"the Ray cluster cannot be joined: {reason}",
            value=target,
            fix=_remedy(str(wrong)),
        ) from None


def join_ray(address: str | None = None) -> None:
    """As `ensure_ray`; the handler that the process has for SIGTERM stays, which Ray would replace
    by an end without teardown."""
    on_termination = signal.getsignal(signal.SIGTERM)
    ensure_ray(address)
    if callable(on_termination) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_termination)


def _knock(target: str) -> None:
    """Raise OSError where nothing listens at host:port; Ray itself would try for 80 s."""
    host, _, port = target.rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=_KNOCK_TIMEOUT_S).close()


def _remedy(message: str) -> str:
    if "token" in message.lower() or "auth" in message.lower():
        return "export RAY_AUTH_MODE=token, and put the cluster's token in ~/.ray/auth_token"
    return "check that the cluster runs there; unset RAY_ADDRESS to start Ray on this machine"


def nodes() -> list[Node]:
    """The nodes that are alive and stay. Figures are up to a second old."""
    status, going = _status(), draining_nodes()
    return [
        Node(
            node.node_id or "", node.ip_address, node.total_resources(), node.available_resources()
        )
        for node in [*status.active_nodes, *status.idle_nodes]
        if node.node_id not in going
    ]


def draining_nodes() -> dict[str, float | None]:
    """Nodes that are to go, because a cloud takes them back or somebody asked Ray to drain them,
    with the Unix time at which they do; None where that is not known. Nothing new is placed there.
    """
    deadlines_ms: dict[str, int] = global_state.get_draining_nodes()
    return {node: at_ms / 1000 if at_ms else None for node, at_ms in deadlines_ms.items()}


def lost_nodes(suspects: Iterable[str]) -> set[str]:
    """Those of the nodes that are gone, once the whole cluster knows it.

    Ray's control store only takes a node for dead after some ten seconds without a heartbeat; until
    then it would start actors there. So a node whose manager does not answer is waited for.
    """
    gone = set()
    for suspect in suspects:
        deadline_s = time.monotonic() + _DEATH_TIMEOUT_S
        while (node := _known(suspect)) is not None and not _answers(node):
            if time.monotonic() > deadline_s:
                break
            time.sleep(_LOOK_S)
        if node is None:
            gone.add(suspect)
    return gone


def _known(node_id: str) -> dict[str, Any] | None:
    """Ray's record of a node that it takes to be alive."""
    known: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return next((one for one in known if one["NodeID"] == node_id and one["Alive"]), None)


def _answers(node: dict[str, Any]) -> bool:
    """Whether a node's manager answers the question that Ray's control store asks it too. Not
    whether it listens: for a process that is stopped the kernel goes on to accept connections."""
    address = f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}"
    with grpc.insecure_channel(address) as channel:
        try:
            channel.unary_unary(_HEALTH_CHECK)(b"", timeout=_KNOCK_TIMEOUT_S)
        except grpc.RpcError as wrong:
            silent = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
            # To be refused is an answer.
            return wrong.code() not in silent
    return True


def cluster_autoscales() -> bool:
    """Whether nodes may yet come by themselves, so that what no node holds now may fit later.

    A launcher gives the nodes it starts a type; on a laptop and on a cluster made by hand there is
    none, whichever of Ray's two autoscalers reports.
    """
    status = _status()
    names = [
        node.ray_node_type_name
        for node in [*status.active_nodes, *status.idle_nodes, *status.pending_nodes]
    ]
    names += [launch.ray_node_type_name for launch in status.pending_launches]
    older = json.loads(_internal_kv_get(_V1_STATUS_KEY) or "{}").get("autoscaler_report") or {}
    names += (older.get("node_type_mapping") or {}).values()
    return any(name and not name.startswith(_UNTYPED_NODE) for name in names)


def _status() -> ClusterStatus:
    return get_cluster_status(ray.get_runtime_context().gcs_address)

"""The Ray cluster: joined or started, and what its nodes have.

What a cluster's state says is read in launch/cluster_state.py, but for the nodes that are to go,
which Ray Train reads from the same place as this does.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterable
from typing import Any

import ray
from ray._private.state import state as global_state

from rayline.errors import PlacementError, SpecError
from rayline.launch.addresses import token_file
from rayline.launch.capacity import Node
from rayline.launch.cluster_state import (
    answers,
    cluster_status,
    node_of,
    scaling_of,
    submitted_jobs,
)

_KNOCK_TIMEOUT_S = 5.0
_DEATH_TIMEOUT_S = 60.0
_LOOK_S = 0.2


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
        _keep_token_private()
    except (ConnectionError, RuntimeError, ValueError, OSError) as wrong:
        reason = (str(wrong).strip() or type(wrong).__name__).splitlines()[0]
        raise PlacementError(
            "address",
            f"the Ray cluster cannot be joined: {reason}",
            value=target,
            fix=_remedy(str(wrong)),
        ) from None


def submission_id() -> str | None:
    """What this process was submitted to the cluster as; None where it was not. Called by the
    driver, on a joined cluster."""
    return submitted_jobs().get(ray.get_runtime_context().get_job_id())


def join_ray(address: str | None = None) -> None:
    """As `ensure_ray`; the handler that the process has for SIGTERM stays, which Ray would replace
    by an end without teardown."""
    on_termination = signal.getsignal(signal.SIGTERM)
    ensure_ray(address)
    if callable(on_termination) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_termination)


def _keep_token_private() -> None:
    """Ray writes the token that opens a cluster where everybody on this machine may read it."""
    file = token_file(os.environ)
    with contextlib.suppress(OSError):
        found = file.stat()
        if found.st_uid == os.getuid() and found.st_mode & 0o077:
            file.chmod(0o600)


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
    status, going = cluster_status(), draining_nodes()
    return [
        node_of(each)
        for each in [*status.active_nodes, *status.idle_nodes]
        if each.node_id not in going
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
        while (node := _known(suspect)) is not None and not answers(node, _KNOCK_TIMEOUT_S):
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


def cluster_autoscales() -> bool:
    """Whether nodes may yet come by themselves, so that what no node holds now may fit later."""
    return scaling_of(cluster_status()) is not None

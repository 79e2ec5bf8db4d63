"""Before anything is started: is the port free, and can the cluster hold the replicas?

Ray Serve waits for ever for resources that no node has, and its proxy shares a port with whoever
else allows it (SO_REUSEPORT), so both are refused here. The questions are asked in deployment.py;
the answers are plain values.
"""

from __future__ import annotations

import errno
import math
import socket
from collections.abc import Mapping, Sequence

from rayline.errors import PlacementError, ServingError

Resources = Mapping[str, float]


def check_port(host: str, port: int, own: tuple[str, int] | None) -> None:
    """Refuse an address that this cluster's Serve could not listen on.

    Called by the driver, on the head node. `own` is where Serve listens already, None where it does
    not run. Raises ServingError naming the port and what to do.
    """
    if own is not None:
        if own[1] != port or not _covers(own[0], host):
            raise ServingError(
                "gateway.port",
                f"the cluster's Serve listens on {own[0]}:{own[1]} and has one address only",
                value=f"{host}:{port}",
                allowed=f"host {own[0]}, port {own[1]}",
                fix=f"--set gateway.host={own[0]} --set gateway.port={own[1]}, or undeploy what "
                "runs there first",
            )
        return
    refused = _bind_error(host, port)
    if refused is None:
        return
    if refused == errno.EADDRINUSE:
        raise ServingError(
            "gateway.port",
            "another program listens there",
            value=f"{host}:{port}",
            fix=f"--set gateway.port={_free_port(host)}, or end that program "
            f"(ss -ltnp 'sport = :{port}')",
        )
    if refused == errno.EACCES:
        raise ServingError(
            "gateway.port", "this user may not listen there", value=port, allowed="1024..65535"
        )
    raise ServingError(
        "gateway.host",
        "not an address of the cluster's head node",
        value=host,
        allowed="127.0.0.1 for this machine only, 0.0.0.0 for every network",
    )


def _covers(listening: str, wanted: str) -> bool:
    return listening in (wanted, "0.0.0.0", "::")  # noqa: S104 - compared, not bound


def _bind_error(host: str, port: int) -> int | None:
    """The errno of listening there alone, None where it works."""
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            # A port whose last connections are still closing is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except socket.gaierror:
        return errno.EADDRNOTAVAIL
    except OSError as refused:
        return refused.errno
    return None


def _free_port(host: str) -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((host if _bind_error(host, 0) is None else "127.0.0.1", 0))
        return int(probe.getsockname()[1])


def check_room(bundles: Sequence[Resources], replicas: int, nodes: Sequence[Resources]) -> None:
    """Refuse replicas that no node, or not all nodes together, could ever hold.

    `bundles` is one replica's, all of which lie on one node; `nodes` is what each node has in all.
    Called by the driver. Raises PlacementError with what is wanted and what there is.
    """
    need = _sum(bundles)
    fitting = sum(_times(need, node) for node in nodes)
    if fitting >= replicas:
        return
    largest = max(nodes, key=lambda node: _times(need, node) or _share(need, node), default={})
    raise PlacementError(
        "scale.min_replicas" if fitting else "cpus_per_replica, engine.tensor_parallel_size",
        f"{replicas} replicas of {_text(need)} on one node are wanted; "
        f"the cluster of {len(nodes)} nodes holds {fitting}, its best node has "
        f"{_text({name: largest.get(name, 0) for name in need})}",
        value=replicas,
        fix="lower it, add nodes, or lower what one replica takes",
    )


def missing_now(bundles: Sequence[Resources], replicas: int, free: Resources) -> str:
    """What `replicas` replicas lack of the resources that are free just now; empty for nothing."""
    need = {name: amount * replicas for name, amount in _sum(bundles).items()}
    short = {name: amount for name, amount in need.items() if free.get(name, 0) < amount}
    if not short:
        return ""
    return f"{_text(short)} wanted, {_text({name: free.get(name, 0) for name in short})} free"


def _sum(bundles: Sequence[Resources]) -> dict[str, float]:
    names = sorted({name for bundle in bundles for name in bundle})
    return {name: sum(bundle.get(name, 0) for bundle in bundles) for name in names}


def _times(need: Resources, node: Resources) -> int:
    """How many replicas fit on a node."""
    counts = [math.floor(node.get(name, 0) / amount) for name, amount in need.items() if amount]
    return min(counts, default=0)


def _share(need: Resources, node: Resources) -> float:
    """How much of one replica fits on a node, below 1 where it does not."""
    return min((node.get(name, 0) / amount for name, amount in need.items() if amount), default=0)


def _text(resources: Resources) -> str:
    return ", ".join(f"{amount:g} {name}" for name, amount in sorted(resources.items()))

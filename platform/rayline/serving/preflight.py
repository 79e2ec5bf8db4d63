"""Before anything is started: is the port free, can the cluster hold the replicas, and does a
replica's cache hold a sequence?

Ray Serve waits for ever for resources that no node has, and its proxy shares a port with whoever
else allows it (SO_REUSEPORT), so both are refused here; a cache that is too small vLLM refuses
itself, after half a minute or, on a GPU, once the weights are loaded. The questions are asked in
deployment.py; the answers are plain values.
"""

from __future__ import annotations

import errno
import math
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path

from rayline.errors import PlacementError, ServingError, SpecError
from rayline.planner import (
    KIND_RESOURCE,
    ServedModel,
    fitting_advice,
    gpu_memory_bytes,
    plan_deployment,
    read_served_model,
)
from rayline.spec import Device, EngineSpec, ServeSpec

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


def check_cache(spec: ServeSpec, device: Device, nodes: Sequence[Resources]) -> None:
    """Refuse a KV cache that holds less than one sequence of max_model_len tokens, and whatever
    else the planner knows not to work with this model. Where a GPU's memory is not known, nothing
    is refused for it, nor where the estimate of it may be what is wrong.

    `spec` has its model pinned to a folder (one on a hub is not looked at); `nodes` is what each
    node has in all. Called by the driver. Raises SpecError with the figures and what fits.
    """
    model = _known_model(spec)
    if model is None:
        return
    known = {"device": device, "engine": _with_kind(spec.engine, device, nodes)}
    plan = plan_deployment(spec.model_copy(update=known), model)
    replica = plan.replica
    if not replica.known or not replica.surely_too_small:
        return
    layout, engine = replica.layout, spec.engine
    needed = layout.blocks(engine.max_model_len) * layout.block_bytes
    raise SpecError(
        "engine.max_model_len",
        f"one sequence of it takes {_gib(needed)} of KV cache, and a replica has "
        f"{_gib(replica.cache_bytes)}",
        value=engine.max_model_len,
        allowed=f"up to {replica.longest_tokens}" if replica.longest_tokens else "",
        fix=fitting_advice(list(plan.fits)),
    )


def _known_model(spec: ServeSpec) -> ServedModel | None:
    """The model's sizes; None where they are not on this machine, or not those of a transformer
    with attention, about which the planner knows nothing."""
    if spec.model.directory is None:
        return None
    try:
        return read_served_model(Path(spec.model.directory))
    except SpecError:
        return None


def _with_kind(engine: EngineSpec, device: Device, nodes: Sequence[Resources]) -> EngineSpec:
    """The engine on the cluster's kind of GPU, where the spec leaves it open."""
    if device == "cpu" or engine.gpu is not None:
        return engine
    return engine.model_copy(update={"gpu": gpu_kind(nodes)})


def gpu_kind(nodes: Sequence[Resources]) -> str | None:
    """The kind of GPU with the least memory that the nodes have, as Ray names it; None where one
    has a kind that is not known."""
    kinds = {
        name.removeprefix(KIND_RESOURCE)
        for node in nodes
        if node.get("GPU", 0)
        for name in node
        if name.startswith(KIND_RESOURCE)
    }
    known = {kind: gpu_memory_bytes(kind) for kind in kinds}
    sizes = {kind: size for kind, size in known.items() if size is not None}
    if not sizes or len(sizes) < len(known):
        return None
    return min(sizes, key=lambda kind: sizes[kind])


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.3g} GiB"

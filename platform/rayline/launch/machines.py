"""What there is to run on: this machine, or a cluster as its dashboard tells it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from rayline.launch.connection import connect
from rayline.launch.dashboard import ClusterNode
from rayline.launch.doctor import nvidia_smi
from rayline.planner import KIND_RESOURCE

_GIB = 2**30


@dataclass(frozen=True, slots=True)
class Found:
    """What was found."""

    where: str
    """This machine, or a cluster's address."""
    nodes: int
    cpus: int
    """Of all nodes."""
    memory_bytes: int
    """Of all nodes."""
    gpus: int
    """Of all nodes."""
    gpu_kind: str | None = None
    """As Ray or the driver names it; None without GPUs, or where it is not told."""

    @property
    def text(self) -> str:
        """In words: `2 nodes: 16 H100, 128 CPUs, 512 GiB`."""
        kind = self.gpu_kind or "GPUs"
        parts = [f"{self.gpus} x {kind}"] if self.gpus else []
        parts += [f"{self.cpus} CPUs", f"{self.memory_bytes / _GIB:.0f} GiB"]
        nodes = "" if self.nodes == 1 else f"{self.nodes} nodes: "
        return nodes + ", ".join(parts)


def this_machine() -> Found:
    """What this process may use."""
    listing = nvidia_smi()
    names = [line.split(",")[0].strip() for line in (listing or "").splitlines() if "," in line]
    return Found(
        where="this machine",
        nodes=1,
        cpus=len(os.sched_getaffinity(0)),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        gpus=len(names),
        gpu_kind=names[0].removeprefix("NVIDIA ").replace(" ", "-") if names else None,
    )


def on_cluster(address: str | None) -> Found:
    """What the cluster behind the dashboard at `address` has. Raises PlacementError."""
    dashboard = connect(address)
    return sum_of(dashboard.url, dashboard.nodes())


def sum_of(where: str, nodes: Sequence[ClusterNode]) -> Found:
    """All nodes together; of several kinds of GPU the one that there is most of."""
    kinds: dict[str, float] = {}
    for node in nodes:
        for name in node.resources:
            if name.startswith(KIND_RESOURCE):
                kind = name.removeprefix(KIND_RESOURCE)
                kinds[kind] = kinds.get(kind, 0) + node.resources.get("GPU", 0)
    return Found(
        where=where,
        nodes=len(nodes),
        cpus=int(sum(node.resources.get("CPU", 0) for node in nodes)),
        memory_bytes=int(sum(node.resources.get("memory", 0) for node in nodes)),
        gpus=int(sum(node.resources.get("GPU", 0) for node in nodes)),
        gpu_kind=max(kinds, key=lambda kind: kinds[kind]) if kinds else None,
    )

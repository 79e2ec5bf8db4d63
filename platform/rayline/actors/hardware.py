"""What a job runs on, as plain values for its record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rayline.launch.capacity import Node
from rayline.planner.hardware import KIND_RESOURCE

_SHOWN_NODES = 64


def hardware(nodes: Sequence[Node]) -> dict[str, Any]:
    """The cluster's nodes: how many, what they have together, and the first 64 one by one."""
    each = [_of(node) for node in nodes]
    return {
        "nodes": len(each),
        "cpus": sum(node["cpus"] for node in each),
        "gpus": sum(node["gpus"] for node in each),
        "memory_gib": round(sum(node["memory_gib"] for node in each), 1),
        "gpu_kinds": sorted({kind for node in each for kind in node["gpu_kinds"]}),
        "each": each[:_SHOWN_NODES],
    }


def _of(node: Node) -> dict[str, Any]:
    total = node.total
    return {
        "address": node.address,
        "cpus": total.get("CPU", 0.0),
        "gpus": total.get("GPU", 0.0),
        "memory_gib": round(total.get("memory", 0.0) / 2**30, 1),
        "gpu_kinds": sorted(
            name.removeprefix(KIND_RESOURCE) for name in total if name.startswith(KIND_RESOURCE)
        ),
    }

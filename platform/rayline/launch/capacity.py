"""What nodes could hold, and why not more: arithmetic over values, no Ray.

A bundle is what has to lie on one node. Whether bundles fit is asked twice, of nodes as if they
were idle (what can never fit is refused) and of nodes as they are (what has to wait is explained).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import floor

Bundle = dict[str, float]
"""Ray resource name to amount."""

GRAIN = 1e-4
"""Ray counts resources in ten-thousandths."""
_SHOWN_NODES = 16


@dataclass(frozen=True, slots=True)
class Node:
    """One node of the cluster and its resources, by Ray's names: CPU, GPU, custom ones."""

    id: str
    address: str
    total: dict[str, float]
    available: dict[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"node {self.id[:8]} ({self.address})"


@dataclass(frozen=True, slots=True)
class Shortage:
    """Why bundles cannot be placed, however long one waits."""

    resource: str
    """Ray's name of what lacks most."""
    text: str
    """What is needed and what there is."""


def shortage(bundles: Sequence[Bundle], nodes: Sequence[Node]) -> Shortage | None:
    """Why `nodes`, were they all free, could not hold `bundles`; None where they could.

    Each kind of bundle is looked at by itself, which is exact for a gang: its bundles are alike.
    """
    kinds = Counter(tuple(sorted(bundle.items())) for bundle in bundles)
    for items, count in kinds.items():
        kind = dict(items)
        room = sum(holds(node, kind) for node in nodes)
        if room == 0:
            return _too_large(kind, nodes)
        if room < count:
            scarcest = min(kind, key=lambda name: sum(holds(n, {name: kind[name]}) for n in nodes))
            wanted = f"needs {count} x ({in_words(kind)})"
            return Shortage(scarcest, f"{wanted}; the nodes have room for {room} of them")
    return None


def as_they_are(nodes: Sequence[Node]) -> list[Node]:
    """The nodes as if they had no more than is free on them now."""
    return [replace(node, total=node.available) for node in nodes]


def bearing(nodes: Sequence[Node], labels: Mapping[str, str]) -> list[Node]:
    """Those of the nodes that bear all of the labels."""
    return [
        node for node in nodes if all(node.labels.get(key) == labels[key] for key in sorted(labels))
    ]


def holds(node: Node, bundle: Bundle) -> int:
    """How many such bundles the node, were it free, could hold."""
    return min(
        (floor(node.total.get(name, 0.0) / need + GRAIN) for name, need in bundle.items() if need),
        default=0,
    )


def in_words(bundle: Mapping[str, float]) -> str:
    """Such as `4 GPUs, 2 CPUs`."""
    order = sorted(bundle, key=lambda name: (name != "GPU", name != "CPU", name))
    return ", ".join(amount_text(name, bundle[name]) for name in order) or "nothing"


def amount_text(name: str, amount: float) -> str:
    """Such as `1 GPU`, `12.0 GiB of memory`."""
    if name == "memory":
        return f"{amount / 2**30:.1f} GiB of memory"
    plural = "s" if name in ("CPU", "GPU") and amount != 1 else ""
    return f"{amount:g} {name}{plural}"


def nodes_text(nodes: Sequence[Node], names: Sequence[str]) -> str:
    """What each node has free of the resources, and in all: one line a node, the fullest last."""
    ordered = sorted(nodes, key=lambda node: [-node.available.get(name, 0.0) for name in names])
    lines = [f"{node} has {_free_text(node, names)} free" for node in ordered[:_SHOWN_NODES]]
    if len(nodes) > _SHOWN_NODES:
        lines.append(f"... and {len(nodes) - _SHOWN_NODES} nodes more")
    return "; ".join(lines) or "the cluster has no node that stays"


def _free_text(node: Node, names: Sequence[str]) -> str:
    return ", ".join(
        f"{_figure(name, node.available.get(name, 0.0))} of "
        f"{amount_text(name, node.total.get(name, 0.0))}"
        for name in names
    )


def _figure(name: str, amount: float) -> str:
    return f"{amount / 2**30:.1f}" if name == "memory" else f"{amount:g}"


def _too_large(bundle: Bundle, nodes: Sequence[Node]) -> Shortage:
    """The shortage where not even one such bundle finds a node."""
    order = sorted(bundle, key=lambda name: (name != "GPU", name))
    for name in order:
        most = max((node.total.get(name, 0.0) for node in nodes), default=0.0)
        if most + GRAIN < bundle[name]:
            shown = f"{most / 2**30:.1f} GiB" if name == "memory" else f"{most:g}"
            wanted = f"needs {amount_text(name, bundle[name])} on one node"
            return Shortage(name, f"{wanted}; the largest node has {shown}")
    each = "; ".join(
        in_words({name: node.total.get(name, 0.0) for name in bundle}) for node in nodes
    )
    wanted = f"needs {in_words(bundle)} on one node"
    return Shortage(order[0], f"{wanted}; no node has all of it: {each}")

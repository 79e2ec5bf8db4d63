"""What came from what: nodes and edges, frozen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

NodeKind = Literal["data", "search", "run", "checkpoint", "model", "deployment", "usage"]
KINDS: tuple[NodeKind, ...] = get_args(NodeKind)
"""In the order in which one leads to the next."""


@dataclass(frozen=True, slots=True)
class Node:
    """One hop."""

    kind: NodeKind
    id: str
    """Of this node alone in the lineage, such as run:9f2c... or model:bot/3."""
    name: str
    """As a person calls it."""
    address: str
    """Where it stands: runs:/RUN, models:/NAME/VERSION, either with #tag=KEY or #dataset=DIGEST; a
    model from elsewhere by its ModelRef; for usage the name in the ledger."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """What is worth knowing of it, by name."""


@dataclass(frozen=True, slots=True)
class Edge:
    """`source` led to `target`."""

    source: str
    target: str
    relation: str
    """Such as trained on."""


@dataclass(frozen=True, slots=True)
class UsageFigures:
    """What one version of a served model was asked, from the ledger."""

    served: str
    number: int
    requests: int
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, slots=True)
class Lineage:
    """The nodes around one of them, from data to usage."""

    asked: str
    """Id of the node that was asked for."""
    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]

    def of_kind(self, kind: NodeKind) -> list[Node]:
        """All nodes of a kind."""
        return [node for node in self.nodes if node.kind == kind]

    def node(self, node_id: str) -> Node:
        """The node of this id."""
        return next(node for node in self.nodes if node.id == node_id)

    def with_usage(self, figures: Iterable[UsageFigures]) -> Lineage:
        """With what each deployment was asked; figures of other ones are left out."""
        nodes, edges = list(self.nodes), list(self.edges)
        known = {node.id for node in self.of_kind("deployment")}
        for used in figures:
            deployment = deployment_id(used.served, used.number)
            if deployment not in known:
                continue
            node = Node(
                kind="usage",
                id=f"usage:{used.served}/v{used.number}",
                name=f"{used.requests} requests",
                address=f"{used.served} variant {used.number}",
                facts={
                    "prompt tokens": str(used.prompt_tokens),
                    "completion tokens": str(used.completion_tokens),
                },
            )
            nodes.append(node)
            edges.append(Edge(deployment, node.id, "used"))
        return replace(self, nodes=tuple(nodes), edges=tuple(edges))

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "asked": self.asked,
            "nodes": [{**asdict(node), "facts": dict(node.facts)} for node in self.nodes],
            "edges": [asdict(edge) for edge in self.edges],
        }

    def as_text(self) -> str:
        """A tree from the origins down; a node that several lead to is told whole once."""
        targets = {edge.target for edge in self.edges}
        origins = [node for node in self.nodes if node.id not in targets]
        origins.sort(key=lambda node: -self._hops(node.id))
        lines: list[str] = []
        told: set[str] = set()
        for origin in origins:
            lines += self._branch(origin, "", "", told)
        return "\n".join(lines)

    def _repr_svg_(self) -> str:
        """What a notebook shows."""
        from rayline.tracking.lineage.picture import as_svg

        return as_svg(self)

    def _hops(self, node_id: str) -> int:
        """To the end of the longest way down from a node."""
        below = [edge.target for edge in self.edges if edge.source == node_id]
        return max((1 + self._hops(target) for target in below), default=0)

    def _branch(self, node: Node, lead: str, below: str, told: set[str]) -> list[str]:
        mark = "*" if node.id == self.asked else " "
        said = f"{lead}{mark}{node.kind} {node.name}"
        if node.id in told:
            return [f"{said} (above)"]
        told.add(node.id)
        facts = "".join(f"  {name} {value}" for name, value in node.facts.items())
        lines = [f"{said}  [{node.address}]{facts}"]
        children = [edge for edge in self.edges if edge.source == node.id]
        for place, edge in enumerate(children):
            last = place == len(children) - 1
            lines += self._branch(
                self.node(edge.target),
                f"{below}{'└─' if last else '├─'}",
                f"{below}{'   ' if last else '│  '}",
                told,
            )
        return lines


def deployment_id(served: str, number: int) -> str:
    """Of a version of a served model."""
    return f"deployment:{served}/v{number}"

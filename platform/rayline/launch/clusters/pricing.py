"""What a cluster may have and cost an hour, before anything is rented. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from rayline.launch.clusters.catalogue import PRICES_OF, Machine, group_machine, head_machine
from rayline.launch.clusters.launcher import shares
from rayline.launch.clusters.network import refuse_without_fabric
from rayline.launch.clusters.pods import pod_size
from rayline.spec import ClusterSpec


@dataclass(frozen=True, slots=True)
class PlannedNodes:
    """Nodes of one kind."""

    name: str
    machine: str
    """What each is, in words."""
    gpu: str | None
    gpus_per_node: int
    least: int
    """Nodes that are kept even when idle."""
    most: int
    spot: bool
    usd_per_node_hour: float | None
    """On-demand list price; null where the machines are one's own or none was found. A spot node
    costs less, by how much changes by the hour."""


@dataclass(frozen=True, slots=True)
class ClusterPlan:
    """What `up` would bring, and between what limits the autoscaler may move."""

    name: str
    provider: str
    nodes: tuple[PlannedNodes, ...]
    """The head first."""
    notes: tuple[str, ...]

    @property
    def priced(self) -> bool:
        """Whether anything of it is rented by the hour from a cloud."""
        return any(each.usd_per_node_hour is not None for each in self.nodes)

    @property
    def gpus(self) -> tuple[int, int]:
        """GPUs that are kept, and at most."""
        return (
            sum(each.least * each.gpus_per_node for each in self.nodes),
            sum(each.most * each.gpus_per_node for each in self.nodes),
        )

    @property
    def usd_per_hour(self) -> tuple[float, float]:
        """Price while idle, and at most; nodes without a known price are left out."""
        return (
            sum(each.least * (each.usd_per_node_hour or 0.0) for each in self.nodes),
            sum(each.most * (each.usd_per_node_hour or 0.0) for each in self.nodes),
        )


def plan_cluster(spec: ClusterSpec) -> ClusterPlan:
    """The plan of a cluster. Raises SpecError where it names what is not to be had."""
    rented = spec.cloud is not None
    head = head_machine(spec)
    nodes = [_node("head", head, _head_words(spec, head), None, 0, 1, 1, rented=rented, spot=False)]
    if spec.machines is not None:
        count = len(spec.machines.workers)
        nodes.append(
            _node("worker", None, "a machine of yours", None, 0, count, count, rented=False)
        )
    for index, group in enumerate(spec.groups):
        machine = group_machine(spec, index)
        if group.fast_network:
            refuse_without_fabric(spec, index, machine)
        words = _group_words(spec, index, machine)
        nodes += [
            _node(
                f"{group.name}{suffix}",
                machine,
                words,
                group.gpu,
                group.gpus_per_node,
                least,
                most,
                rented=machine is not None,
                spot=spot,
            )
            for suffix, spot, least, most in shares(group)
        ]
    return ClusterPlan(spec.name, spec.provider, tuple(nodes), tuple(_notes(spec, nodes)))


def _node(
    name: str,
    machine: Machine | None,
    words: str,
    gpu: str | None,
    gpus: int,
    least: int,
    most: int,
    *,
    rented: bool,
    spot: bool = False,
) -> PlannedNodes:
    price = machine.usd_per_hour if rented and machine is not None else None
    return PlannedNodes(name, words, gpu, gpus, least, most, spot, price)


def _head_words(spec: ClusterSpec, machine: Machine | None) -> str:
    if machine is not None:
        return machine.words
    if spec.machines is not None:
        return "a machine of yours"
    return f"{spec.head.cpus} CPU" + ("" if spec.kubernetes is None else " pod")


def _group_words(spec: ClusterSpec, index: int, machine: Machine | None) -> str:
    if machine is not None:
        return machine.words
    group = spec.groups[index]
    cpus, memory_gib = pod_size(group, None)
    gpus = f", {group.gpus_per_node} x {group.gpu}" if group.gpu else ""
    if spec.provider == "fake":
        return f"{cpus} CPU{gpus} (made up)"
    return f"pod of {cpus} CPU, {memory_gib} GiB{gpus}"


def _notes(spec: ClusterSpec, nodes: list[PlannedNodes]) -> list[str]:
    notes = []
    if any(each.usd_per_node_hour is not None for each in nodes):
        region = spec.cloud.region if spec.cloud is not None else "the provider's first region"
        notes.append(
            f"on-demand list prices of {PRICES_OF}, without disks, traffic and taxes; another "
            f"region than the catalogue's may differ ({region} here)"
        )
    if any(each.spot for each in nodes):
        notes.append("spot nodes are counted at the on-demand price: what they cost changes")
    rented = spec.cloud is not None
    unknown = sorted({each.machine for each in nodes if each.usd_per_node_hour is None})
    if rented and unknown:
        notes.append(f"no price is known for {', '.join(unknown)}: not counted")
    if rented and nodes[0].usd_per_node_hour is not None:
        cost = nodes[0].usd_per_node_hour
        notes.append(f"the head costs ${cost:.2f} an hour until `rayline cluster down`, idle too")
    if spec.kubernetes is not None:
        notes.append("Kubernetes' own nodes and control plane are paid for as you have them")
    return notes

"""The room that a job which may go on narrower finds: the cluster's nodes in, a job out. No Ray."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from rayline.actors.bundles import gang_bundles, memory_bundles, worker_bundle
from rayline.errors import PlacementError
from rayline.launch.capacity import Bundle, Node, bearing, in_words, shortage
from rayline.planner import estimate_memory, narrower_plans, widest_that_fits
from rayline.spec import JobSpec, ModelShape


@dataclass(frozen=True, slots=True)
class Elastic:
    """What a job wants, and what it can do with."""

    wanted: JobSpec
    """With the plan that it goes back to as soon as it can."""
    shape: ModelShape
    gpu: bool
    """Whether its workers hold GPUs."""

    def bundles(self, job: JobSpec) -> list[Bundle]:
        """Room for `job`, which is the wanted one under some plan."""
        return gang_bundles(job.plan, job.resources, self.gpu)

    def fitting(self, nodes: Sequence[Node], below: int | None = None) -> JobSpec | None:
        """The wanted job under the best plan for what is free on the nodes, with less than `below`
        workers where that is given; None where nothing fits."""
        free = [replace(node, total=node.available) for node in nodes]

        def fits(job: JobSpec) -> bool:
            if below is not None and job.plan.world_size >= below:
                return False
            return self._fits(job, free, nodes)

        return widest_that_fits(self.wanted, self.shape, fits)

    def could_fit(self, nodes: Sequence[Node]) -> bool:
        """Whether some plan would fit if the nodes were idle."""
        return self.fitting([replace(node, available=node.total) for node in nodes]) is not None

    def no_room(self, nodes: Sequence[Node]) -> PlacementError:
        """Why not even the narrowest plan fits."""
        *_, narrowest = narrower_plans(self.wanted.plan)
        bundle = worker_bundle(self.wanted.resources, self.gpu)
        each = "; ".join(f"node {node.id[:8]} has {_free(node, bundle)} free" for node in nodes)
        return PlacementError(
            "plan",
            f"no room for {self.wanted.plan} nor anything narrower, down to {narrowest}: {each}",
            fix="end what holds the resources (`ray list actors` shows it), or add nodes; then "
            "`rayline resume` goes on",
        )

    def _fits(self, job: JobSpec, free: Sequence[Node], nodes: Sequence[Node]) -> bool:
        labels = job.resources.labels
        if shortage(self.bundles(job), bearing(free, labels)) is not None:
            return False
        if self.gpu:
            return True
        # Memory is not asked of Ray, so what is free of it is not known: only what there is.
        worker_bytes = estimate_memory(self.shape, job).total_bytes
        return shortage(memory_bundles(job.plan, worker_bytes), bearing(nodes, labels)) is None


def with_own_room(nodes: Sequence[Node], held: Iterable[tuple[str, Bundle]]) -> list[Node]:
    """The nodes as if a gang gave back its bundles, each of which lies on the node with that id."""
    free = {node.id: Counter(node.available) for node in nodes}
    for node_id, bundle in held:
        if node_id in free:
            free[node_id].update(bundle)
    return [replace(node, available=dict(free[node.id])) for node in nodes]


def _free(node: Node, bundle: Bundle) -> str:
    return in_words({name: node.available.get(name, 0.0) for name in bundle})

"""What a gang asks of the cluster: arithmetic, no Ray.

The bundle is the unit of locality. One bundle holds one tensor group, and Ray never splits a bundle
over nodes, so a tensor group never straddles them. All bundles of a gang are alike: which of them a
group gets is free, and is chosen so that neighbouring groups (of one stage, then of neighbouring
stages) lie on the same node or on the next.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import ceil, floor

from rayline.errors import SpecError
from rayline.launch.capacity import GRAIN, Bundle, Node
from rayline.spec import JobSpec, ParallelPlan, ResourceSpec


def uses_gpu(resources: ResourceSpec, nodes: Iterable[Node]) -> bool:
    """Whether workers hold GPUs: as the spec says, or where any node has one."""
    if resources.device == "auto":
        return any(node.total.get("GPU", 0.0) > 0 for node in nodes)
    return resources.device == "gpu"


def worker_bundle(resources: ResourceSpec, gpu: bool) -> Bundle:
    """What one worker holds. Raises SpecError where that is nothing, or a part of several GPUs."""
    held = {"CPU": resources.cpus_per_worker, **resources.custom}
    if gpu:
        share = resources.gpus_per_worker
        if share > 1 and share != int(share):
            raise SpecError(
                "resources.gpus_per_worker",
                "a worker holds whole GPUs, or a part of one",
                value=share,
                allowed="a whole number, or a part of one such as 0.5",
            )
        held["GPU"] = share
    held = {name: amount for name, amount in held.items() if amount > 0}
    if not held:
        raise SpecError(
            "resources",
            "a worker that holds nothing cannot be placed",
            value=resources.cpus_per_worker,
            fix="--set resources.cpus_per_worker=0.1",
        )
    return held


def gang_bundles(plan: ParallelPlan, resources: ResourceSpec, gpu: bool) -> list[Bundle]:
    """One bundle for each tensor group: `plan.tensor` workers side by side."""
    held = worker_bundle(resources, gpu)
    bundle = {name: _times(plan.tensor, amount) for name, amount in held.items()}
    if "GPU" in held:
        bundle["GPU"] = _gpus(plan.tensor, held["GPU"])
    return [dict(bundle) for _ in range(plan.world_size // plan.tensor)]


def trial_bundles(job: JobSpec, nodes: Iterable[Node]) -> list[Bundle]:
    """The bundles that one trial of a search needs for its gang. The trial's placement group ends
    with them; what stands before them (the trial's own process) is the search's affair."""
    return gang_bundles(job.plan, job.resources, uses_gpu(job.resources, nodes))


def memory_bundles(plan: ParallelPlan, worker_bytes: int) -> list[Bundle]:
    """The same groups by the memory that their workers fill, where that is the nodes' own. It is
    compared with what the nodes have and not asked of Ray: it is an estimate."""
    groups = plan.world_size // plan.tensor
    return [{"memory": float(plan.tensor * worker_bytes)} for _ in range(groups)]


def neighbourly(node_of_bundle: Sequence[str]) -> list[int]:
    """Indices of bundles, those on one node side by side; nodes in the order of appearance."""
    first = {node: index for index, node in reversed(list(enumerate(node_of_bundle)))}
    return sorted(range(len(node_of_bundle)), key=lambda index: first[node_of_bundle[index]])


def _times(count: int, amount: float) -> float:
    return round(count * amount, 4)


def _gpus(workers: int, share: float) -> float:
    """GPUs that `workers` need side by side. A part of a GPU is never spread over two of them."""
    if share >= 1 or workers * share <= 1:
        return _times(workers, share)
    return float(ceil(workers / floor(1 / share + GRAIN)))

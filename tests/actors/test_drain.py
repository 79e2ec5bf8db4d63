"""A node that is to go, as a cloud takes a spot machine back: the gang leaves it before it does."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rayline.actors import cluster
from rayline.actors.bundles import gang_bundles, worker_bundle
from rayline.actors.controller import Controller
from rayline.actors.gang import Assignment
from rayline.actors.interrupt import StopRequest
from rayline.actors.placement import Placement
from rayline.spec import JobSpec, StepReport

MakeJob = Callable[..., JobSpec]


def drain(node_id: str, seconds: int) -> None:
    """What Ray is told when a machine is about to be preempted."""
    import ray
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason

    client = ray._raylet.GcsClient(address=ray.get_runtime_context().gcs_address)
    accepted, reason = client.drain_node(
        node_id,
        DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION,
        "a test's",
        int((time.time() + seconds) * 1000),
    )
    assert accepted, reason


@pytest.mark.ray
def test_a_gang_moves_away_from_a_node_that_is_to_go(mortal_nodes: Any, make_job: MakeJob) -> None:
    import ray

    from support import rank_functions

    for _ in range(2):
        mortal_nodes.add_node(num_cpus=2)
    mortal_nodes.wait_for_nodes()
    job = make_job(**{"plan.data": 2, "steps": 1000})
    assignment = Assignment(
        job, Path("model"), worker_bundle(job.resources, gpu=False), rank_functions.moved
    )
    events: list[tuple[str, str]] = []
    drained: list[str] = []

    def drain_its_node(report: StepReport) -> None:
        if report.step == 3:
            drained.append(Path(job.directory, "nodes-0").read_text().split()[0])
            drain(drained[0], 60)

    controller = Controller(
        assignment,
        Placement(gang_bundles(job.plan, job.resources, gpu=False)),
        [drain_its_node],
        StopRequest(),
        lambda kind, text: events.append((kind, text)),
    )
    ray.cloudpickle.register_pickle_by_value(rank_functions)
    try:
        result = controller.run()
    finally:
        ray.cloudpickle.unregister_pickle_by_value(rank_functions)
    assert result.finished
    assert [kind for kind, _ in events] == ["draining", "moved"]
    assert drained[0][:8] in events[0][1]
    for rank in range(2):
        first, second = Path(job.directory, f"nodes-{rank}").read_text().splitlines()
        assert first == f"{drained[0]} False"
        # What it then finds on storage is its own.
        assert second.endswith(" True")
        assert drained[0] not in second
    assert drained[0] not in {node.id for node in cluster.nodes()}

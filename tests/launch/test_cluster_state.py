"""Why something waits, from a real cluster: each reason within five seconds of its cause."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

from rayline.actors.placement import Placement, refuse_impossible
from rayline.errors import PlacementError
from rayline.launch import probes
from rayline.launch.capacity import Bundle
from rayline.launch.cluster_state import look_at_cluster
from rayline.launch.node_health import node_findings
from rayline.launch.pending import Pending, Wanted, why_pending

pytestmark = pytest.mark.ray

WITHIN_S = 5.0


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[Any]:
    """A driver's node without resources, one of 4 GPUs and one of 2 that Ray only believes in."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    try:
        cluster.add_node(num_cpus=0, include_dashboard=False)
        ray.init(address=cluster.address, log_to_driver=False)
        large = cluster.add_node(num_cpus=2, num_gpus=4, labels={"market": "on-demand"})
        cluster.add_node(num_cpus=2, num_gpus=2, resources={"small": 2})
        cluster.wait_for_nodes()
        yield large
    finally:
        ray.shutdown()
        cluster.shutdown()


def told(
    kind: str, bundles: list[Bundle], labels: Mapping[str, str] | None = None, job: str = ""
) -> Pending:
    """The reason, once it is of this kind, which has to be soon."""
    wanted = Wanted(bundles, labels or {}, job)
    deadline_s = time.monotonic() + WITHIN_S
    while (why := why_pending(wanted, look_at_cluster())).kind != kind:
        assert time.monotonic() < deadline_s, why
        time.sleep(0.1)
    assert time.monotonic() < deadline_s
    return why


def test_what_no_node_has_is_refused_at_once_with_the_nodes(two_nodes: Any) -> None:
    began_s = time.monotonic()
    with pytest.raises(PlacementError) as refused:
        refuse_impossible([{"GPU": 8.0}], nearest="--set plan.tensor=4")
    assert time.monotonic() - began_s < 2
    assert refused.value.problem.startswith("needs 8 GPUs on one node; the largest node has 4. ")
    assert "4 of 4 GPUs free" in refused.value.problem
    assert "2 of 2 GPUs free" in refused.value.problem
    assert refused.value.fix.startswith("--set plan.tensor=4, or ")


def test_a_label_that_no_node_bears(two_nodes: Any) -> None:
    assert "market=on-demand" in told("label", [{"GPU": 1.0}], {"market": "spot"}).reason
    with pytest.raises(PlacementError) as refused:
        refuse_impossible([{"GPU": 1.0}], {"market": "spot"})
    assert refused.value.subject == "resources.labels"
    # One that a node bears is found, and the gang lies there.
    gang = Placement([{"GPU": 2.0}], labels={"market": "on-demand"})
    gang.reserve(10, lambda: False)
    assert gang.node_of_bundle() == {0: two_nodes.node_id}
    gang.release()


def test_a_gang_that_holds_it_is_named(two_nodes: Any, caplog: pytest.LogCaptureFixture) -> None:
    rival = Placement([{"GPU": 3.0}], name="rival")
    rival.reserve(10, lambda: False)
    try:
        why = told("held", [{"GPU": 4.0}])
        assert why.reason.startswith("gang rival ")
        assert f"holds 3 of the 4 GPUs on node {two_nodes.node_id[:8]}" in why.reason
        late = Placement([{"GPU": 4.0}], name="late")
        with pytest.raises(
            PlacementError, match=r"within 3 s: gang rival .* holds 3 of the 4 GPUs"
        ):
            late.reserve(3, lambda: False)
        assert "waiting for room for 1 x (4 GPUs): gang rival" in caplog.text
        late.release()
    finally:
        rival.release()


@pytest.mark.engines
def test_every_node_is_measured_and_the_network_between_them(two_nodes: Any) -> None:
    document = probes.measure_cluster()
    assert [node.get("problem") for node in document["nodes"]] == [None] * 3
    assert {node["ray_gpus"] for node in document["nodes"]} == {0.0, 2.0, 4.0}
    assert all(node["matmul"][0]["flops_per_s"] > 1e8 for node in document["nodes"])
    group = document["group"]
    assert group["backend"] == "gloo"
    assert group["bytes_per_s"] > 1e6
    assert {link["from"] for link in group["links"]} == {
        node["node_id"] for node in document["nodes"]
    }
    told = {each.name: each for each in node_findings(document, {"python": None})}
    assert (told["clock"].level, told["all-reduce"].level) == ("ok", "ok")
    assert "3 nodes within 0.0" in told["clock"].text


def test_a_node_that_is_to_go(two_nodes: Any) -> None:
    import ray
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason

    @ray.remote(num_gpus=2, resources={"small": 1})
    class Cache:
        def node(self) -> str:
            return ray.get_runtime_context().get_node_id()

    cache = Cache.options(name="cache").remote()  # type: ignore[attr-defined]
    node_id = ray.get(cache.node.remote(), timeout=30)
    wanted: Bundle = {"GPU": 1.0, "small": 1.0}
    why = told("held", [wanted])
    assert "actor cache holds 2 of the 2 GPUs" in why.reason
    accepted, reason = ray._raylet.GcsClient(
        address=ray.get_runtime_context().gcs_address
    ).drain_node(
        node_id,
        DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION,
        "a test's",
        int((time.time() + 60) * 1000),
    )
    assert accepted, reason
    why = told("leaving", [wanted])
    assert f"node {node_id[:8]}" in why.reason
    assert re.search(r"is draining and goes in (5\d|60) s", why.reason)
    ray.kill(cache)


def test_a_node_that_is_dying(two_nodes: Any) -> None:
    raylet = two_nodes.all_processes["raylet"][0].process.pid
    os.kill(raylet, signal.SIGSTOP)
    try:
        began_s = time.monotonic()
        why = why_pending(Wanted([{"GPU": 4.0}]), look_at_cluster())
        assert time.monotonic() - began_s < WITHIN_S
    finally:
        os.kill(raylet, signal.SIGCONT)
    assert why.kind == "leaving"
    assert f"node {two_nodes.node_id[:8]}" in why.reason
    assert "is dying: its node manager does not answer" in why.reason


def test_a_runtime_environment_that_fails_is_told_with_its_error(two_nodes: Any) -> None:
    import ray

    @ray.remote(num_cpus=0, runtime_env={"working_dir": "gcs://_ray_pkg_0123456789abcdef.zip"})
    class Unlucky:
        def answer(self) -> int:
            return 42

    actor = Unlucky.remote()  # type: ignore[attr-defined]
    with pytest.raises(ray.exceptions.RayError):
        ray.get(actor.answer.remote(), timeout=30)
    job = ray.get_runtime_context().get_job_id()
    why = told("environment", [{"GPU": 1.0}], job=job)
    assert "Unlucky cannot be set up" in why.reason
    assert "_ray_pkg_0123456789abcdef" in why.reason

"""What a cluster costs before it is rented: sums in numbers."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayline.launch.clusters.catalogue import BY_NAME
from rayline.launch.clusters.pricing import plan_cluster
from rayline.spec import ClusterSpec

AWS: dict[str, Any] = {"name": "a", "provider": "aws", "cloud": {"region": "us-west-2"}}
H100 = {"name": "h", "gpu": "H100", "gpus_per_node": 8}


def test_idle_and_most_are_sums_of_the_table() -> None:
    groups = [
        {**H100, "min_nodes": 1, "max_nodes": 4},
        {"name": "l", "gpu": "L4", "gpus_per_node": 4, "max_nodes": 3},
    ]
    plan = plan_cluster(ClusterSpec.parse({**AWS, "groups": groups}))
    assert plan.gpus == (8, 4 * 8 + 3 * 4)
    idle, most = plan.usd_per_hour
    assert idle == pytest.approx(0.4032 + 55.04)
    assert most == pytest.approx(0.4032 + 4 * 55.04 + 3 * 4.6016)
    assert any("$0.40 an hour" in note for note in plan.notes)


@given(most=st.integers(1, 64), share=st.floats(0, 1))
def test_spot_changes_neither_gpus_nor_the_upper_bound(most: int, share: float) -> None:
    plans = [
        plan_cluster(
            ClusterSpec.parse({**AWS, "groups": [{**H100, "max_nodes": most, "spot_share": part}]})
        )
        for part in (0.0, share)
    ]
    assert plans[0].gpus == plans[1].gpus == (0, most * 8)
    assert plans[0].usd_per_hour == pytest.approx(plans[1].usd_per_hour)


def test_a_machine_without_a_price_is_said_and_not_counted() -> None:
    tree = {
        "name": "a",
        "provider": "gcp",
        "cloud": {"region": "us-central1", "zones": ["us-central1-a"], "project_id": "p"},
        "groups": [{"name": "b", "gpu": "B200", "gpus_per_node": 8, "max_nodes": 1}],
    }
    plan = plan_cluster(ClusterSpec.parse(tree))
    assert plan.usd_per_hour[1] == pytest.approx(0.3885)
    assert any("no price is known for a4-highgpu-8g" in note for note in plan.notes)


def test_ones_own_machines_have_no_price() -> None:
    machines = {"head": "10.0.0.1", "workers": ["10.0.0.2", "10.0.0.3"]}
    tree = {"name": "a", "provider": "on-premises", "autoscaler": "v1", "machines": machines}
    plan = plan_cluster(ClusterSpec.parse(tree))
    assert not plan.priced
    assert [node.most for node in plan.nodes] == [1, 2]


def test_the_table_is_plausible() -> None:
    for machine in BY_NAME.values():
        assert machine.cpus > 0
        assert machine.memory_gib >= machine.cpus
        assert (machine.gpu is None) == (machine.gpus == 0) == (machine.gpu_memory_gb == 0)
        if machine.usd_per_hour is not None and machine.gpus:
            # Below a used L4's, or above twice the dearest GPU's, would be a slip of the pen.
            assert 0.5 <= machine.usd_per_hour / machine.gpus <= 20
        if machine.fabric is not None:
            assert machine.network_cards >= machine.gpus / 2

"""What a gang asks for, and whether nodes could give it."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayline.actors.bundles import (
    gang_bundles,
    memory_bundles,
    neighbourly,
    uses_gpu,
    worker_bundle,
)
from rayline.errors import SpecError
from rayline.launch.capacity import Bundle, Node, shortage
from rayline.spec import ParallelPlan, ResourceSpec


def node(**total: float) -> Node:
    return Node("a" * 8, "10.0.0.1", total, total)


def told(bundles: list[Bundle], nodes: list[Node]) -> str:
    lacking = shortage(bundles, nodes)
    assert lacking is not None
    return lacking.text


def test_what_lacks_most_is_named() -> None:
    two = [node(CPU=2), node(CPU=2)]
    lacking = shortage(gang_bundles(ParallelPlan(data=5), ResourceSpec(), gpu=False), two)
    assert lacking is not None
    assert lacking.resource == "CPU"
    assert lacking.text == "needs 5 x (1 CPU); the nodes have room for 4 of them"
    mixed = [node(CPU=64, GPU=1), node(CPU=64, GPU=1)]
    lacking = shortage(gang_bundles(ParallelPlan(data=3), ResourceSpec(), gpu=True), mixed)
    assert lacking is not None
    assert lacking.resource == "GPU"


def test_a_bundle_holds_one_tensor_group() -> None:
    plan = ParallelPlan(tensor=2, pipeline=3)
    resources = ResourceSpec(cpus_per_worker=2, custom={"fast_disk": 1})
    assert gang_bundles(plan, resources, gpu=True) == [
        {"CPU": 4, "GPU": 2, "fast_disk": 2} for _ in range(3)
    ]
    assert gang_bundles(plan, resources, gpu=False)[0] == {"CPU": 4, "fast_disk": 2}


@pytest.mark.parametrize(
    ("tensor", "share", "gpus"), [(1, 0.5, 0.5), (2, 0.5, 1), (3, 0.5, 2), (3, 0.6, 3), (2, 2, 4)]
)
def test_a_part_of_a_gpu_is_never_spread_over_two(tensor: int, share: float, gpus: float) -> None:
    resources = ResourceSpec(gpus_per_worker=share)
    assert gang_bundles(ParallelPlan(tensor=tensor), resources, gpu=True)[0]["GPU"] == gpus


@pytest.mark.parametrize(
    ("resources", "gpu", "field"),
    [
        (ResourceSpec(gpus_per_worker=1.5), True, "resources.gpus_per_worker"),
        (ResourceSpec(cpus_per_worker=0), False, "resources"),
    ],
)
def test_what_no_worker_can_hold_is_refused(resources: ResourceSpec, gpu: bool, field: str) -> None:
    with pytest.raises(SpecError) as refused:
        worker_bundle(resources, gpu)
    assert refused.value.subject == field


def test_memory_is_told_in_gib() -> None:
    nodes = [node(CPU=2, memory=16 * 2**30)]
    assert shortage(memory_bundles(ParallelPlan(tensor=2), 2**30), nodes) is None
    assert told(memory_bundles(ParallelPlan(tensor=2), 9 * 2**30), nodes) == (
        "needs 18.0 GiB of memory on one node; the largest node has 16.0 GiB"
    )
    assert told(memory_bundles(ParallelPlan(pipeline=2), 9 * 2**30), nodes) == (
        "needs 2 x (9.0 GiB of memory); the nodes have room for 1 of them"
    )


def test_auto_takes_gpus_where_there_are_any() -> None:
    auto = ResourceSpec()
    assert uses_gpu(auto, [node(CPU=4), node(CPU=4, GPU=1)])
    assert not uses_gpu(auto, [node(CPU=4)])
    assert not uses_gpu(ResourceSpec(device="cpu"), [node(GPU=8)])
    assert uses_gpu(ResourceSpec(device="gpu"), [])


def test_the_message_names_what_is_wanted_and_the_most_there_is() -> None:
    three = [node(CPU=4, GPU=3) for _ in range(3)]
    wanted = gang_bundles(ParallelPlan(tensor=4), ResourceSpec(), gpu=True)
    assert told(wanted, three) == "needs 4 GPUs on one node; the largest node has 3"
    wanted = gang_bundles(ParallelPlan(tensor=2, pipeline=4), ResourceSpec(), gpu=True)
    assert told(wanted, three) == ("needs 4 x (2 GPUs, 2 CPUs); the nodes have room for 3 of them")
    uneven = [node(CPU=1, GPU=4), node(CPU=8)]
    wanted = gang_bundles(ParallelPlan(tensor=2), ResourceSpec(), gpu=True)
    assert "no node has all of it: 4 GPUs, 1 CPU; 0 GPUs, 8 CPUs" in told(wanted, uneven)
    assert told(wanted, []) == "needs 2 GPUs on one node; the largest node has 0"


@given(
    tensor=st.integers(1, 8),
    groups=st.integers(1, 12),
    gpus=st.lists(st.integers(0, 8), min_size=1, max_size=6),
)
def test_the_verdict_is_that_of_laying_groups_out_one_by_one(
    tensor: int, groups: int, gpus: list[int]
) -> None:
    plan = ParallelPlan(tensor=tensor, data=groups)
    bundles = gang_bundles(plan, ResourceSpec(cpus_per_worker=0), gpu=True)
    laid = sum(1 for free in gpus for _ in range(0, free - tensor + 1, tensor))
    fits = shortage(bundles, [node(GPU=free) for free in gpus]) is None
    assert fits == (laid >= groups)
    assert sum(bundle["GPU"] for bundle in bundles) == plan.world_size


@given(st.lists(st.sampled_from("abcd"), max_size=12))
def test_bundles_of_one_node_stand_side_by_side(places: list[str]) -> None:
    order = neighbourly(places)
    assert sorted(order) == list(range(len(places)))
    seen = [places[index] for index in order]
    changes = sum(1 for left, right in itertools.pairwise(seen) if left != right)
    assert changes == max(0, len(set(places)) - 1)

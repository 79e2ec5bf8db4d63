"""What each worker is told, from where the workers came to stand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayline.actors.seating import Whereabouts, bundle_of_rank, contexts, one_device, shares
from rayline.errors import PlacementError
from rayline.spec import ParallelPlan


def test_a_tensor_group_shares_its_bundle() -> None:
    plan = ParallelPlan(tensor=2, pipeline=3)
    assert bundle_of_rank(plan, [2, 0, 1]) == [2, 2, 0, 0, 1, 1]


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=9), st.integers(1, 64))
def test_local_ranks_count_up_on_each_node_and_find_their_gpu(nodes: list[str], cores: int) -> None:
    places = [
        Whereabouts(node, f"10.0.0.{ord(node)}", 1, cores, (str(nodes[:rank].count(node)),))
        for rank, node in enumerate(nodes)
    ]
    for rank, share in enumerate(shares(places)):
        on_node = nodes.count(nodes[rank])
        assert share.local_rank == nodes[:rank].count(nodes[rank])
        assert share.visible_gpus[share.local_rank] == places[rank].gpus[0]
        assert len(share.visible_gpus) == share.workers == on_node
        assert share.threads == max(1, cores // on_node)


def test_threads_are_shared_by_machine_where_nodes_are_simulated() -> None:
    places = [Whereabouts(node, "127.0.0.1", 1, 4, ()) for node in "ab"]
    assert [share.threads for share in shares(places)] == [2, 2]
    # Beside other gangs on the same host.
    assert [share.threads for share in shares(places, 1)] == [1, 1]
    assert [share.threads for share in shares(places, 0)] == [1, 1]
    assert [share.threads for share in shares(places, 9)] == [2, 2]


def test_contexts_carry_rank_coordinate_and_the_meeting_point() -> None:
    plan = ParallelPlan(tensor=2, pipeline=2)
    places = [Whereabouts("a", "10.0.0.1", 1, 8, ()) for _ in range(4)]
    told = contexts(plan, shares(places), "cpu", ("10.0.0.1", 4711))
    assert [context.rank for context in told] == [0, 1, 2, 3]
    assert [str(context.coordinate) for context in told][3] == "pp1-dp0-cp0-tp1"
    assert {context.world_size for context in told} == {4}
    assert {(context.master_address, context.master_port) for context in told} == {
        ("10.0.0.1", 4711)
    }


def test_a_gang_computes_on_one_kind_of_device() -> None:
    assert one_device(["cuda", "cuda"]) == "cuda"
    with pytest.raises(PlacementError) as refused:
        one_device(["cuda", "cpu", "cuda"])
    assert "[1]" in refused.value.problem

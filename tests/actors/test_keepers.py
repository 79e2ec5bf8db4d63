"""Which snapshot a gang goes on from, and what has to travel for it."""

from hypothesis import given
from hypothesis import strategies as st

from rayline.actors.keepers import moves, newest_common
from rayline.spec import SnapshotMark

marks = st.builds(SnapshotMark, step=st.integers(1, 4), epoch=st.integers(1, 2))
held = st.dictionaries(
    st.integers(0, 3),
    st.dictionaries(st.sampled_from(["a", "b"]), st.lists(marks, max_size=2), max_size=2),
)


def test_the_newest_that_all_ranks_have_somewhere() -> None:
    fifth, sixth = SnapshotMark(5, 1), SnapshotMark(6, 1)
    assert newest_common({0: {"a": [fifth, sixth]}, 1: {"a": [fifth]}}, 2) == fifth
    assert newest_common({0: {"a": [sixth]}, 1: {"b": [fifth], "a": [sixth]}}, 2) == sixth
    assert newest_common({0: {"a": [sixth]}}, 2) is None
    assert newest_common({0: {"a": [sixth]}, 1: {"a": [fifth]}}, 2) is None


def test_a_step_done_again_counts_for_more_than_its_first_time() -> None:
    first, again = SnapshotMark(7, 1), SnapshotMark(6, 2)
    assert newest_common({0: {"a": [first, again]}}, 1) == again


@given(held)
def test_what_is_common_is_held_by_every_rank_and_moves_come_from_holders(
    held: dict[int, dict[str, list[SnapshotMark]]],
) -> None:
    mark = newest_common(held, 4)
    having = {
        rank: {node for node, found in held.get(rank, {}).items() if mark in found}
        for rank in range(4)
    }
    if mark is None:
        return
    assert all(having.values())
    nodes = ["a", "b", "c", "a"]
    moved = dict(moves(held, mark, nodes))
    for rank, node in enumerate(nodes):
        assert (rank in moved) == (node not in having[rank])
        assert rank not in moved or moved[rank] in having[rank]

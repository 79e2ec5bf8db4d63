"""Cuts as values: every place held, in order, by as many ranks as it should be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayline.parallel.cut import Cut, even_cut, heads_cut, packed_cut


def places(cut: Cut, rank: int) -> list[int]:
    return [place for begin, end in cut.spans[rank] for place in range(begin, end)]


@given(size=st.integers(1, 200), ranks=st.integers(1, 16))
def test_an_even_cut_holds_every_place_once_and_in_order(size: int, ranks: int) -> None:
    cut = even_cut(0, size, ranks)
    assert [place for rank in range(ranks) for place in places(cut, rank)] == list(range(size))
    lengths = [cut.length(rank) for rank in range(ranks)]
    assert max(lengths) - min(lengths) <= 1
    assert not cut.shared or size < ranks


@given(width=st.integers(1, 40), ranks=st.integers(1, 8), parts=st.integers(1, 3))
def test_a_packed_cut_gives_each_rank_the_same_columns_of_every_part(
    width: int, ranks: int, parts: int
) -> None:
    share = width * ranks
    cut = packed_cut(1, parts * share, ranks, parts)
    for rank in range(ranks):
        own = list(range(rank * width, (rank + 1) * width))
        assert places(cut, rank) == [part * share + place for part in range(parts) for place in own]


@given(heads=st.integers(1, 8), more=st.integers(1, 4), size=st.integers(1, 16))
def test_fewer_heads_than_ranks_are_shared_by_neighbours(heads: int, more: int, size: int) -> None:
    ranks = heads * more
    cut = heads_cut(0, heads, size, ranks)
    for rank in range(ranks):
        head = rank // more
        assert places(cut, rank) == list(range(head * size, (head + 1) * size))
        assert cut.holders(rank) == tuple(range(head * more, (head + 1) * more))


@given(ranks=st.integers(1, 8), each=st.integers(1, 4), size=st.integers(1, 16))
def test_as_many_heads_or_more_go_whole_to_the_ranks(ranks: int, each: int, size: int) -> None:
    cut = heads_cut(0, ranks * each, size, ranks)
    assert all(cut.length(rank) == each * size for rank in range(ranks))
    assert not cut.shared


def test_heads_that_fit_neither_way_are_refused() -> None:
    with pytest.raises(ValueError, match="4 heads go neither evenly over 6 ranks"):
        heads_cut(0, 4, 16, 6)

"""Which rectangle of a whole parameter a rank holds, where the tensor axis alone has cut it."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from rayline.parallel.cut import Cut, even_cut, heads_cut, packed_cut
from rayline.parallel.layout import TensorLayout


def parts(whole: torch.Tensor, cut: Cut) -> list[torch.Tensor]:
    """What each rank holds, taken by the cut's own ranges."""
    return [
        torch.cat([whole.narrow(cut.dim, begin, end - begin) for begin, end in spans], cut.dim)
        for spans in cut.spans
    ]


def cuts(dims: int) -> st.SearchStrategy[tuple[Cut, int]]:
    def of(ranks: int, dim: int, width: int, kind: str) -> tuple[Cut, int]:
        if kind == "even":
            return even_cut(dim, width * ranks + 1, ranks), width * ranks + 1
        if kind == "packed":
            return packed_cut(dim, 2 * width * ranks, ranks, 2), 2 * width * ranks
        return heads_cut(dim, 1, width, ranks), width

    return st.builds(
        of,
        st.integers(1, 4),
        st.integers(0, dims - 1),
        st.integers(1, 5),
        st.sampled_from(["even", "packed", "shared"]),
    )


@given(cuts(3))
def test_rectangles_put_together_are_the_whole(found: tuple[Cut, int]) -> None:
    cut, size = found
    shape = [2, 3, 4]
    shape[cut.dim] = size
    whole = torch.arange(2 * 3 * 4 * size).reshape(-1)[: torch.Size(shape).numel()].reshape(shape)
    rebuilt, answered = torch.full_like(whole, -1), torch.zeros_like(whole)
    for rank, part in enumerate(parts(whole, cut)):
        layout = TensorLayout(rank, {"weight": cut})
        assert layout.whole_shape("weight", part) == tuple(shape)
        for held in layout.held("weight", part):
            own = part[held.view]
            place = tuple(
                slice(begin, begin + extent)
                for begin, extent in zip(held.offset, own.shape, strict=True)
            )
            assert torch.equal(own, whole[place])
            rebuilt[place] = own
            answered[place] += layout.answers_for("weight", part)
    assert torch.equal(rebuilt, whole)
    assert torch.equal(answered, torch.ones_like(whole))


def test_what_no_cut_names_is_whole_and_answered_for_once() -> None:
    norm = torch.arange(6.0)
    layouts = [TensorLayout(rank, {}) for rank in range(3)]
    for layout in layouts:
        (held,) = layout.held("norm", norm)
        assert held.offset == (0,)
        assert torch.equal(norm[held.view], norm)
    assert [layout.answers_for("norm", norm) for layout in layouts] == [True, False, False]
    assert not TensorLayout(0, {}, first_replica=False).answers_for("norm", norm)


@given(cuts(2), st.integers(1, 3), st.integers(1, 3))
def test_spread_experts_put_together_are_the_whole(
    found: tuple[Cut, int], expert_ranks: int, own: int
) -> None:
    cut, size = found[0], found[1]
    cut = Cut(cut.dim + 1, cut.spans)
    shape = [own * expert_ranks, 3, 4]
    shape[cut.dim] = size
    whole = torch.arange(torch.Size(shape).numel()).reshape(shape)
    rebuilt = torch.full_like(whole, -1)
    for place, experts in enumerate(whole.split(own)):
        for rank, part in enumerate(parts(experts, cut)):
            layout = TensorLayout(
                rank, {"experts": cut}, frozenset({"experts"}), place, expert_ranks
            )
            assert layout.whole_shape("experts", part) == tuple(shape)
            for held in layout.held("experts", part):
                rebuilt[held.spans] = part[held.view]
    assert torch.equal(rebuilt, whole)

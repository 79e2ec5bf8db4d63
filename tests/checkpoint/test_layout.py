"""Rectangles: overlap and tiling, against counting place by place."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from rayline.checkpoint.layout import Rectangle, tiling_fault

SMALL = st.integers(0, 4)


@st.composite
def rectangles(draw: st.DrawFn, dims: int) -> Rectangle:
    vector = st.tuples(*[SMALL] * dims)
    return Rectangle(draw(vector), draw(vector))


def places(rectangle: Rectangle) -> set[tuple[int, ...]]:
    spans = zip(rectangle.offset, rectangle.extent, strict=True)
    return set(itertools.product(*(range(begin, begin + size) for begin, size in spans)))


@given(st.integers(0, 3).flatmap(lambda dims: st.tuples(rectangles(dims), rectangles(dims))))
def test_overlap_is_the_common_places(pair: tuple[Rectangle, Rectangle]) -> None:
    common = pair[0].overlap(pair[1])
    assert (places(common) if common else set()) == places(pair[0]) & places(pair[1])


@given(st.integers(1, 2).flatmap(lambda dims: st.lists(rectangles(dims), max_size=5)), st.data())
def test_tiling_means_every_place_once(found: list[Rectangle], data: st.DataObject) -> None:
    dims = len(found[0].offset) if found else 1
    shape = data.draw(st.tuples(*[st.integers(0, 5)] * dims))
    whole = places(Rectangle((0,) * dims, shape))
    counted = sorted(place for one in found for place in places(one))
    tiles = counted == sorted(whole) and all(one.inside(shape) for one in found)
    assert (tiling_fault(shape, found) is None) == tiles


@given(st.data())
def test_grids_tile_and_a_lost_part_is_missed(data: st.DataObject) -> None:
    rows, columns = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
    grid = [
        Rectangle((2 * row, 3 * column), (2, 3)) for row in range(rows) for column in range(columns)
    ]
    shape = (2 * rows, 3 * columns)
    assert tiling_fault(shape, grid) is None
    lost = data.draw(st.integers(0, len(grid) - 1))
    assert "elements are there" in (tiling_fault(shape, grid[:lost] + grid[lost + 1 :]) or "")
    assert "overlap" in (tiling_fault(shape, [*grid, grid[lost]]) or "")


def test_a_scalar_is_one_place() -> None:
    scalar = Rectangle((), ())
    assert tiling_fault((), [scalar]) is None
    assert tiling_fault((), [scalar, scalar]) is not None
    assert tiling_fault((), []) is not None


def test_negative_numbers_lie_outside() -> None:
    assert tiling_fault((4,), [Rectangle((-1,), (5,))]) == (
        "a piece of [5] at [-1] lies outside its shape [4]"
    )
    assert tiling_fault((4,), [Rectangle((0,), (-4,)), Rectangle((0,), (8,))]) is not None


def test_many_ranks_are_checked_in_time_linear_in_their_number() -> None:
    columns = [Rectangle((0, 8 * rank), (64, 8)) for rank in range(20_000)]
    assert tiling_fault((64, 160_000), columns) is None


@given(st.integers(0, 3).flatmap(rectangles), st.integers(1, 5))
def test_bands_hold_every_place_once_and_no_more_rows_than_asked(
    whole: Rectangle, rows: int
) -> None:
    bands = list(whole.bands(rows))
    assert sorted(place for band in bands for place in places(band)) == sorted(places(whole))
    assert all(band.extent[0] <= rows for band in bands if band.extent)

"""Rectangles of a whole tensor: where they overlap, and whether they tile it.

Pure arithmetic on integers: no tensor is touched here, so a hostile manifest costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod


@dataclass(frozen=True, slots=True)
class Rectangle:
    """The places offset[d] <= i < offset[d] + extent[d] of every dim d. Without dims: one place."""

    offset: tuple[int, ...]
    extent: tuple[int, ...]

    @property
    def places(self) -> int:
        """Elements inside."""
        return prod(self.extent)

    def overlap(self, other: Rectangle) -> Rectangle | None:
        """The rectangle that both hold; None when it would be empty. Same number of dims."""
        begin = tuple(map(max, self.offset, other.offset))
        end = tuple(map(min, self._end(), other._end()))
        extent = tuple(last - first for first, last in zip(begin, end, strict=True))
        return Rectangle(begin, extent) if all(size > 0 for size in extent) else None

    def slices_within(self, outer: Rectangle) -> tuple[slice, ...]:
        """How this rectangle is addressed inside a tensor that holds `outer`."""
        return tuple(
            slice(begin - base, begin - base + size)
            for begin, size, base in zip(self.offset, self.extent, outer.offset, strict=True)
        )

    def bands(self, rows: int) -> Iterator[Rectangle]:
        """The same places in rectangles of at most so many along the first dim."""
        if not self.extent:
            yield self
            return
        for done in range(0, self.extent[0], rows):
            height = min(rows, self.extent[0] - done)
            yield Rectangle((self.offset[0] + done, *self.offset[1:]), (height, *self.extent[1:]))

    def inside(self, shape: Sequence[int]) -> bool:
        """Whether it has the dims of `shape` and lies within it."""
        return len(self.offset) == len(self.extent) == len(shape) and all(
            begin >= 0 and size >= 0 and begin + size <= whole
            for begin, size, whole in zip(self.offset, self.extent, shape, strict=True)
        )

    def _end(self) -> tuple[int, ...]:
        return tuple(begin + size for begin, size in zip(self.offset, self.extent, strict=True))

    def __str__(self) -> str:
        ranges = zip(self.offset, self._end(), strict=True)
        return "[" + ",".join(f"{first}:{last}" for first, last in ranges) + "]"


def tiling_fault(shape: Sequence[int], rectangles: Sequence[Rectangle]) -> str | None:
    """Why `rectangles` do not cover a tensor of `shape` exactly once; None when they do."""
    for rectangle in rectangles:
        if not rectangle.inside(shape):
            begin, size = list(rectangle.offset), list(rectangle.extent)
            return f"a piece of {size} at {begin} lies outside its shape {list(shape)}"
    covered = sum(rectangle.places for rectangle in rectangles)
    whole = prod(shape)
    if twice := _first_overlap(rectangles):
        return f"{twice[0]} and {twice[1]} overlap"
    if covered != whole:
        return f"{covered} of {whole} elements are there"
    return None


def _first_overlap(rectangles: Sequence[Rectangle]) -> tuple[Rectangle, Rectangle] | None:
    """Two rectangles that share a place. A sweep along the dim that is cut most: near linear for
    the grids that plans make, where comparing all pairs would be quadratic in the ranks."""
    if not rectangles:
        return None
    dims = range(len(rectangles[0].offset))
    axis = max(dims, key=lambda dim: len({one.offset[dim] for one in rectangles}), default=None)
    if axis is None:
        return (rectangles[0], rectangles[1]) if len(rectangles) > 1 else None
    open_ones: list[Rectangle] = []
    for new in sorted(rectangles, key=lambda one: one.offset[axis]):
        open_ones = [
            one for one in open_ones if one.offset[axis] + one.extent[axis] > new.offset[axis]
        ]
        for one in open_ones:
            if one.overlap(new):
                return one, new
        open_ones.append(new)
    return None

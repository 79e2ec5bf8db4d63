"""Rows: a list that a notebook shows as a table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from rayline.sdk.notebook.html import table

T = TypeVar("T")


class Rows(list[T]):
    """A list of values with the columns in which a notebook shows them; equal to any list of the
    same values."""

    def __init__(self, values: Iterable[T], columns: Mapping[str, Callable[[T], object]]) -> None:
        super().__init__(values)
        self._columns = dict(columns)

    def __reduce__(self) -> tuple[type[list[T]], tuple[list[T]]]:
        # The columns are functions of here: elsewhere it is the list that it is.
        return list, (list(self),)

    def _repr_html_(self) -> str:
        """Asked for by notebooks."""
        return table(
            list(self._columns),
            [[show(value) for show in self._columns.values()] for value in self],
        )

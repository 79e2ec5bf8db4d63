"""Rows of tables: parquet files, and datasets that Hugging Face's `datasets` saved to a folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from rayline.data.storage import StoredFile
from rayline.errors import SpecError

_ROWS_AT_ONCE = 1024
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Table:
    """One column of a table, read row by row."""

    count: int
    rows: Callable[[int, int], Iterator[Row]]
    """`rows(begin, count)`: rows from number `begin` (from 0) on, each {column: value}. Raises
    SpecError, OSError."""

    def __len__(self) -> int:
        return self.count


def open_parquet(file: StoredFile, subject: str, column: str) -> Table:
    """The column of a parquet file; `subject` names it in errors. Raises SpecError, OSError."""
    import pyarrow
    import pyarrow.parquet

    def rows(begin: int, count: int) -> Iterator[Row]:
        with file.open() as stream:
            table = pyarrow.parquet.ParquetFile(stream)
            sizes = [table.metadata.row_group(n).num_rows for n in range(table.num_row_groups)]
            group = 0
            while group < len(sizes) and begin >= sizes[group]:
                begin, group = begin - sizes[group], group + 1
            groups = range(group, len(sizes))
            for batch in table.iter_batches(_ROWS_AT_ONCE, row_groups=groups, columns=[column]):
                wanted = batch.slice(begin, count)
                begin, count = max(0, begin - batch.num_rows), count - wanted.num_rows
                yield from map(_without_nulls, wanted.to_pylist())
                if count <= 0:
                    return

    def readable(begin: int, count: int) -> Iterator[Row]:
        try:
            yield from rows(begin, count)
        except pyarrow.ArrowException as wrong:
            raise _unreadable(subject, "parquet", wrong) from None

    try:
        with file.open() as stream:
            table = pyarrow.parquet.ParquetFile(stream)
            _check_column(subject, column, table.schema_arrow.names)
            return Table(table.metadata.num_rows, readable)
    except pyarrow.ArrowException as wrong:
        raise _unreadable(subject, "parquet", wrong) from None


def open_dataset(folder: StoredFile, subject: str, column: str) -> Table:
    """The same of a folder that `datasets.Dataset.save_to_disk` wrote."""
    import datasets

    options = None if folder.system is None else folder.system.storage_options
    try:
        found = datasets.load_from_disk(folder.address, storage_options=options)
    except Exception as wrong:  # noqa: BLE001 - a damaged folder makes datasets raise anything
        raise _unreadable(subject, "a saved dataset", wrong) from None
    _check_column(subject, column, found.column_names)
    held = found.select_columns([column]).with_format("arrow")

    def rows(begin: int, count: int) -> Iterator[Row]:
        for batch in held.select(range(begin, begin + count)).iter(_ROWS_AT_ONCE):
            yield from map(_without_nulls, batch.to_pylist())

    return Table(len(held), rows)


def _unreadable(subject: str, kind: str, wrong: Exception) -> SpecError:
    first = (str(wrong) or type(wrong).__name__).splitlines()[0]
    return SpecError(subject, f"can't be read as {kind}: {first}")


def _check_column(subject: str, column: str, names: list[str]) -> None:
    if column not in names:
        raise SpecError(
            subject,
            f"has no column {column}",
            value=names,
            allowed="a column messages (data.kind chat) or text (data.kind text)",
        )


def _without_nulls(row: Row) -> Row:
    """Messages without the keys that are null: a table has every key in every row."""
    messages = row.get("messages")
    if not isinstance(messages, list):
        return row
    kept = [
        {key: value for key, value in message.items() if value is not None}
        if isinstance(message, dict)
        else message
        for message in messages
    ]
    return {"messages": kept}

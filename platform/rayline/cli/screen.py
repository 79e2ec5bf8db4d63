"""Screen: where a verb's words go.

A person's terminal gets tables and colour, a pipe gets plain lines, and with `--json` stdout holds
exactly one JSON document while everything said on the way goes to stderr.
"""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


class Screen:
    """What one verb prints through. `NO_COLOR` and pipes are honoured by rich.

    With `--json` whatever else is printed on stdout, by packages too, goes to stderr from here on;
    `entry.run` puts stdout back.
    """

    def __init__(self, *, json_wanted: bool, verbose: bool = False) -> None:
        self.json_wanted = json_wanted
        self._documents = sys.stdout
        if json_wanted:
            sys.stdout = sys.stderr
        self.console = Console(
            stderr=json_wanted, highlight=False, markup=False, emoji=False, soft_wrap=True
        )
        if verbose:
            logging.basicConfig(level=logging.INFO, stream=sys.stderr)

    @property
    def interactive(self) -> bool:
        """True where a person watches: live progress may be drawn."""
        return self.console.is_terminal and not self.json_wanted

    def say(self, text: str = "", style: str | None = None) -> None:
        """One line (or several) of plain text."""
        self.console.print(text, style=style)

    def write(self, piece: str) -> None:
        """A piece of a line, shown at once: an answer while it comes."""
        self.console.print(piece, end="")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Rows under their columns: boxed for a person, aligned plain lines for a pipe."""
        cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
        if not self.interactive:
            self.say("\n".join(plain_table(columns, cells)))
            return
        table = Table(*columns, header_style="bold", show_header=any(columns))
        for row in cells:
            table.add_row(*row)
        self.console.print(table, soft_wrap=False)

    def result(self, value: Any) -> None:
        """The verb's outcome as the one JSON document; silent without `--json`."""
        if self.json_wanted:
            self._documents.write(json.dumps(plain(value), indent=2, ensure_ascii=False) + "\n")
            self._documents.flush()


@contextmanager
def packages_silenced() -> Iterator[None]:
    """Keep the bars and notes of transformers, tqdm and DeepSpeed off the screen: none of them is
    about what the verb does, and what goes wrong comes as an exception."""
    # Not a file: DeepSpeed keeps the stream that it found when it was imported.
    nowhere = io.StringIO()
    with redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def plain_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligned lines without borders, cut nowhere: what a log or `grep` can use. Columns without
    any name have no header."""
    header = [list(columns)] if any(columns) else []
    everything = [*header, *[list(row) for row in rows]]
    widths = [max(len(row[place]) for row in everything) for place in range(len(columns))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in everything
    ]


def plain(value: Any) -> Any:
    """A spec, a dataclass or a container of them as values that JSON has."""
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, Mapping):
        return {str(key): plain(content) for key, content in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(content) for content in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return str(value)


def size_text(size_bytes: float) -> str:
    """Bytes for a person: 1.5 GiB, 12.0 MiB."""
    for unit, scale in (("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024)):
        if size_bytes >= scale:
            return f"{size_bytes / scale:.1f} {unit}"
    return f"{size_bytes:.0f} B"


def duration_text(seconds: float) -> str:
    """Seconds for a person: 1:02:03, 4:05."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def shown_path(path: Path) -> str:
    """The path relative to the current folder where it lies below it."""
    absolute = path.absolute()
    here = Path.cwd()
    return str(absolute.relative_to(here)) if absolute.is_relative_to(here) else str(absolute)

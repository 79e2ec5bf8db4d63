"""Sources: files of chats or of plain text, read record by record and refused where they are wrong.

Nothing here needs torch or a tokenizer, so the driver checks every line of the data before a
worker is started, and the workers read it by the same rules. A file is named by a path or by any
address that fsspec knows; what reads tables and addresses is imported only where one is met.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from rayline.data.record import Chat, Passage, Place, chat_of, object_of, passage_of
from rayline.data.storage import StoredFile
from rayline.data.table import Row, Table, open_dataset, open_parquet
from rayline.errors import SpecError
from rayline.spec import DataSpec

TRAINING_FILES = "data.files"
"""The field of a job that names its training files; errors begin with it."""
HELD_OUT_FILES = "evaluation.files"
"""The one that names the files it is measured on."""
Kind = Literal["chat", "text"]
_SUFFIXES = {"chat": (".jsonl", ".parquet"), "text": (".parquet", ".jsonl", ".txt")}
_COLUMN = {"chat": "messages", "text": "text"}


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of a job, and where the job names it."""

    field: str
    """The list that it stands in, such as data.files or data.mixture[0].files."""
    index: int
    """Its place in that list, from 0."""
    address: str

    def __str__(self) -> str:
        return f"{self.field}[{self.index}] ({self.address})"


@dataclass(frozen=True, slots=True)
class FilePart:
    """Some of a file's records that follow each other."""

    first: int
    """Line or row that it begins with, from 1."""
    offset: int
    """Byte that its first line begins at; of no meaning to rows."""
    count: int | None
    """Lines, blank ones too, or rows; None for all that follow."""


def files_by_source(spec: DataSpec, field: str = TRAINING_FILES) -> list[list[SourceFile]]:
    """The files of each source of `spec`, in order. `field` is where the job names the files, where
    they are not a mixture."""
    fields = [field]
    if spec.mixture is not None:
        fields = [f"data.mixture[{number}].files" for number in range(len(spec.mixture))]
    return [
        [SourceFile(name, index, address) for index, address in enumerate(source.files)]
        for name, source in zip(fields, spec.sources, strict=True)
    ]


def check_files(spec: DataSpec, field: str = TRAINING_FILES) -> int:
    """Read every record of every file; returns how many chats or passages there are.

    Called on the driver, before any worker starts. `field` is where the job names the files.
    Raises SpecError naming file and line.
    """
    records = read_chats(spec, field) if spec.kind == "chat" else read_passages(spec, field)
    return sum(1 for _ in records)


def check_tokenizer(spec: DataSpec, directory: Path) -> None:
    """Refuse a model folder without a tokenizer, or, for chats, without a chat template.

    Called on the driver. It looks at names and JSON only; whether the tokenizer can be loaded
    shows where it is. Raises SpecError.
    """
    if not any((directory / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise SpecError(
            f"model ({directory})",
            "holds no tokenizer",
            allowed="a folder with tokenizer.json",
            fix="save the model's tokenizer beside its weights",
        )
    if spec.kind == "chat" and not _names_chat_template(directory):
        raise no_chat_template(directory)


def no_chat_template(directory: Path) -> SpecError:
    """The error for data.kind chat with a tokenizer that can't write a chat as text."""
    return SpecError(
        "data.kind",
        f"the tokenizer in {directory} has no chat template, so a chat can't become text",
        value="chat",
        allowed="text, or a model whose tokenizer has a chat template",
        fix="use the model's instruct variant, or --set data.kind=text with files of plain text",
    )


def read_chats(spec: DataSpec, field: str = TRAINING_FILES) -> Iterator[Chat]:
    """The chats of all files, in order. Raises SpecError at the first one that is wrong."""
    for source in files_by_source(spec, field):
        for file in source:
            yield from chats_of(file)


def read_passages(spec: DataSpec, field: str = TRAINING_FILES) -> Iterator[Passage]:
    """The passages of all files, in order. Raises SpecError at the first one that is wrong."""
    for source in files_by_source(spec, field):
        for file in source:
            yield from passages_of(file)


def chats_of(file: SourceFile, part: FilePart | None = None) -> Iterator[Chat]:
    """The chats of one file, or of a part of it. Raises SpecError."""
    for place, record in _records(file, "chat", part):
        tree = object_of(place, record) if isinstance(record, str) else record
        yield chat_of(place, tree)


def passages_of(file: SourceFile, part: FilePart | None = None) -> Iterator[Passage]:
    """The passages of one file, or of a part of it. Raises SpecError."""
    for place, record in _records(file, "text", part):
        if isinstance(record, str) and file.address.endswith(".txt"):
            yield Passage(place, record)
        else:
            tree = object_of(place, record) if isinstance(record, str) else record
            yield passage_of(place, tree)


def parts_of(file: SourceFile, kind: Kind, records: int) -> list[FilePart]:
    """The file in parts of so many records, the last one with fewer. Raises SpecError."""
    if is_table(file, kind):
        count = len(_table(file, kind))
        return [
            FilePart(first + 1, 0, min(records, count - first))
            for first in range(0, count, records)
        ]
    parts: list[FilePart] = []
    first, offset, held, number, end = 1, 0, 0, 0, 0
    with _reading(file), stored_file(file, kind).open() as stream:
        for number, raw in enumerate(stream, start=1):
            end += len(raw)
            held += bool(raw.strip())
            if held == records:
                parts.append(FilePart(first, offset, number - first + 1))
                first, offset, held = number + 1, end, 0
    if held:
        parts.append(FilePart(first, offset, number - first + 1))
    return parts


def _records(
    file: SourceFile, kind: Kind, part: FilePart | None
) -> Iterator[tuple[Place, str | Row]]:
    """Every line that isn't blank, or every row, with its place; of a whole file never none."""
    found, whole = False, part or FilePart(1, 0, None)
    with _reading(file):
        for place, record in (
            _rows(file, kind, whole) if is_table(file, kind) else _lines(file, kind, whole)
        ):
            found = True
            yield place, record
    if not found and part is None:
        raise SpecError(str(file), "is empty", fix=f"remove it from {file.field}")


def _lines(file: SourceFile, kind: Kind, part: FilePart) -> Iterator[tuple[Place, str]]:
    with stored_file(file, kind).open() as stream:
        stream.seek(part.offset)
        for number, raw in enumerate(islice(stream, part.count), start=part.first):
            place = Place(file.field, file.index, file.address, number)
            line = _decoded(place, raw)
            if line.strip():
                yield place, line


def _rows(file: SourceFile, kind: Kind, part: FilePart) -> Iterator[tuple[Place, Row]]:
    table = _table(file, kind)
    count = len(table) if part.count is None else part.count
    for number, row in enumerate(table.rows(part.first - 1, count), start=part.first):
        yield Place(file.field, file.index, file.address, number, "row"), row


def is_table(file: SourceFile, kind: Kind) -> bool:
    """Whether the file has rows, not lines. Raises SpecError where there is none."""
    return stored_file(file, kind).is_folder or file.address.endswith(".parquet")


def _table(file: SourceFile, kind: Kind) -> Table:
    stored = stored_file(file, kind)
    opened = open_dataset if stored.is_folder else open_parquet
    return opened(stored, str(file), _COLUMN[kind])


@contextmanager
def _reading(file: SourceFile) -> Iterator[None]:
    try:
        yield
    except OSError as wrong:
        raise SpecError(str(file), f"can't be read: {wrong.strerror or wrong}") from None


def size_bytes(file: SourceFile, kind: Kind) -> int:
    """Of a file, or of all in a dataset's folder. Raises SpecError."""
    with _reading(file):
        return sum(part.size_bytes() for part in stored_file(file, kind).files_below())


def stored_file(file: SourceFile, kind: Kind) -> StoredFile:
    """The file or the dataset's folder that the address names. Raises SpecError where there is none
    or it is of another kind."""
    subject = f"{file.field}[{file.index}]"
    stored = StoredFile.at(file.address, subject)
    if not stored.exists():
        raise SpecError(
            subject,
            "no such file",
            value=file.address,
            fix=f"paths are relative to the working directory, {Path.cwd()}",
        )
    if stored.is_folder:
        if not stored.holds("state.json"):
            raise SpecError(
                subject,
                "is not a file, nor a folder that a dataset was saved to",
                value=file.address,
                allowed="a folder with state.json, which Dataset.save_to_disk of Hugging Face's "
                "datasets writes; of several splits, the folder of one",
            )
    elif not file.address.endswith(_SUFFIXES[kind]):
        raise SpecError(
            subject,
            f"data.kind {kind} is not read from a file of this kind",
            value=file.address,
            allowed=" or ".join(_SUFFIXES[kind]),
        )
    return stored


def _decoded(place: Place, raw: bytes) -> str:
    # Some editors put a byte order mark in front of the first line; it is no text.
    encoding = "utf-8-sig" if place.line == 1 else "utf-8"
    try:
        return raw.decode(encoding).rstrip("\r\n")
    except UnicodeDecodeError as wrong:
        raise SpecError(
            str(place),
            f"is not UTF-8 text at byte {wrong.start + 1} of the line",
            value=raw[wrong.start : wrong.start + 1],
            fix="convert the file, such as with iconv -t utf-8",
        ) from None


def _names_chat_template(directory: Path) -> bool:
    if any((directory / name).is_file() for name in ("chat_template.jinja", "chat_template.json")):
        return True
    try:
        config = json.loads((directory / "tokenizer_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(config.get("chat_template"))

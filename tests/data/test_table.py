"""Data that is no local file of lines: parquet, saved datasets, and addresses of fsspec."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rayline.data import check_files, load_dataset
from rayline.data.record import Message
from rayline.data.source import SourceFile, parts_of, passages_of, read_chats, read_passages
from rayline.errors import SpecError
from rayline.spec import DataSpec

TEXTS = [f"text number {n}" for n in range(10)]
USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}


def spec_of(kind: str, *files: Any) -> DataSpec:
    tree = {"kind": kind, "files": [str(file) for file in files], "sequence_tokens": 8}
    return DataSpec.parse(tree)


def parquet(file: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=4)
    return file


def texts(rows: list[str] = TEXTS) -> list[dict[str, Any]]:
    return [{"id": number, "text": text} for number, text in enumerate(rows)]


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, str]:
    """The same ten passages, in every form."""
    lines = "".join(json.dumps({"text": text}) + "\n\n" for text in TEXTS)
    (tmp_path / "a.jsonl").write_text(lines)
    (tmp_path / "a.txt").write_text("\n".join(TEXTS))
    parquet(tmp_path / "a.parquet", texts())
    datasets.Dataset.from_list(texts()).save_to_disk(tmp_path / "saved", num_shards=2)
    memory = fsspec.filesystem("memory")
    for name in ("a.jsonl", "a.parquet"):
        memory.pipe(f"/data/{name}", (tmp_path / name).read_bytes())
    for file in (tmp_path / "saved").iterdir():
        memory.pipe(f"/data/saved/{file.name}", file.read_bytes())
    local = {name: str(tmp_path / name) for name in ("a.jsonl", "a.txt", "a.parquet", "saved")}
    names = ("a.jsonl", "a.parquet", "saved")
    remote = {f"memory {name}": f"memory://data/{name}" for name in names}
    return {**local, **remote, "file address": f"file://{tmp_path}/a.parquet"}


def test_every_form_holds_the_same_passages(sources: dict[str, str]) -> None:
    for name, address in sources.items():
        found = list(read_passages(spec_of("text", address)))
        assert [passage.text for passage in found] == TEXTS, name
        unit = "line" if name.endswith(("jsonl", "txt")) else "row"
        step = 2 if name.endswith("jsonl") else 1
        assert str(found[4].place) == f"data.files[0] ({address}), {unit} {4 * step + 1}"
    assert check_files(spec_of("text", *sources.values())) == 10 * len(sources)


@pytest.mark.parametrize("records", [1, 3, 10, 11])
def test_a_file_is_the_sum_of_its_parts(sources: dict[str, str], records: int) -> None:
    for name, address in sources.items():
        file = SourceFile("data.files", 0, address)
        parts = parts_of(file, "text", records)
        by_part = [list(passages_of(file, part)) for part in parts]
        assert [len(own) for own in by_part[:-1]] == [records] * (len(parts) - 1), name
        assert [one for own in by_part for one in own] == list(passages_of(file)), name


def test_chats_come_from_tables_too(tmp_path: Path) -> None:
    # In a table a message has every key that any has: those that are null are not there.
    named = {**USER, "name": None}
    rows = [{"messages": [named, ANSWER]}, {"messages": [USER, {**ANSWER, "name": None}]}]
    file = parquet(tmp_path / "a.parquet", rows)
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved")

    chats = list(read_chats(spec_of("chat", file, tmp_path / "saved")))

    assert [chat.messages for chat in chats] == [
        (Message("user", "Hi"), Message("assistant", "Hello"))
    ] * 4


@pytest.mark.parametrize(
    ("kind", "rows", "place", "message"),
    [
        ("text", texts(["x", ""]), ", row 2", "text is empty"),
        ("text", [{"text": "x"}, {"text": None}], ", row 2, text", "is no text"),
        ("text", [{"text": 3}], ", row 1, text", "is no text"),
        ("text", [{"words": "x"}], "", "has no column text"),
        ("chat", texts(), "", "has no column messages"),
        ("chat", [{"messages": [USER]}], ", row 1", "no assistant speaks"),
        ("chat", [{"messages": [{**USER, "tool": "x"}, ANSWER]}], ", row 1, messages[0]", "tool"),
    ],
)
def test_a_wrong_row_is_refused_by_its_number(
    tmp_path: Path, kind: str, rows: list[dict[str, Any]], place: str, message: str
) -> None:
    file = parquet(tmp_path / "a.parquet", rows)
    datasets.Dataset.from_list(rows).save_to_disk(tmp_path / "saved")
    for name in (file, tmp_path / "saved"):
        with pytest.raises(SpecError) as refused:
            check_files(spec_of(kind, name))
        assert refused.value.subject == f"data.files[0] ({name}){place}"
        assert message in str(refused.value)


def test_what_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    torn, empty, damaged = tmp_path / "torn.parquet", tmp_path / "none.parquet", tmp_path / "saved"
    torn.write_bytes(b"PAR1 and no more")
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), empty)
    damaged.mkdir()
    (damaged / "state.json").write_text("{}")
    both = tmp_path / "both"
    split = datasets.Dataset.from_list(texts())
    datasets.DatasetDict({"train": split, "test": split}).save_to_disk(both)
    for address, said in (
        (torn, "can't be read as parquet"),
        (empty, "is empty"),
        (damaged, "can't be read as a saved dataset"),
        (both, "of several splits, the folder of one"),
        ("memory://nowhere/a.jsonl", "no such file"),
        ("memory://nowhere/a.csv", "no such file"),
        ("nosuch://bucket/a.jsonl", "this kind of address can't be read here"),
    ):
        with pytest.raises(SpecError) as refused:
            check_files(spec_of("text", address))
        assert refused.value.subject.startswith("data.files[0]")
        assert said in str(refused.value)
    assert check_files(spec_of("text", both / "train")) == len(TEXTS)


def test_a_source_of_a_mixture_is_named_by_its_place(tmp_path: Path, tokenizer_dir: Path) -> None:
    (tmp_path / "a.txt").write_text("fine\n" * 9)
    (tmp_path / "b.jsonl").write_text('{"text": "fine"}\n{"text": ""}\n')
    mixture = [{"files": [str(tmp_path / name)]} for name in ("a.txt", "b.jsonl")]
    spec = DataSpec.parse({"kind": "text", "mixture": mixture, "sequence_tokens": 8})
    for read in (check_files, lambda spec: load_dataset(spec, tokenizer_dir)):
        with pytest.raises(SpecError) as refused:
            read(spec)
        file = f"data.mixture[1].files[0] ({tmp_path}/b.jsonl)"
        assert refused.value.subject == f"{file}, line 2"

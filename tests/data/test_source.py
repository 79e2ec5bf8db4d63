"""Files that are right are counted; files that are wrong are refused by file and line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rayline.data import check_files, check_tokenizer
from rayline.data.record import Message
from rayline.data.source import read_chats, read_passages
from rayline.errors import SpecError
from rayline.spec import DataSpec

USER = {"role": "user", "content": "Hi"}
ANSWER = {"role": "assistant", "content": "Hello"}
GOOD = {"messages": [USER, ANSWER]}


def spec_of(kind: str, *files: Path) -> DataSpec:
    tree = {"kind": kind, "files": [str(file) for file in files], "sequence_tokens": 8}
    return DataSpec.parse(tree)


def test_chats_are_read_in_the_order_of_files_and_lines(data: Any, tmp_path: Path) -> None:
    system = {"role": "system", "content": ""}
    first = data("chat", GOOD, "", {"messages": [system, USER, ANSWER], "id": 7}, name="a.jsonl")
    second = data("chat", GOOD, name="b.jsonl")
    spec = spec_of("chat", Path(second.files[0]), Path(first.files[0]))

    chats = list(read_chats(spec))

    assert [(chat.place.index, chat.place.line) for chat in chats] == [(0, 1), (1, 1), (1, 3)]
    assert chats[2].messages[0] == Message("system", "")
    assert check_files(spec) == 3


def test_text_comes_from_jsonl_and_from_lines_of_txt(tmp_path: Path) -> None:
    lines, objects = tmp_path / "a.txt", tmp_path / "b.jsonl"
    lines.write_bytes("\ufeffOne héron\r\n\r\n  Two \n".encode())
    objects.write_text('{"text": "Three\\nlines"}')

    passages = list(read_passages(spec_of("text", lines, objects)))

    assert [p.text for p in passages] == ["One héron", "  Two ", "Three\nlines"]
    assert str(passages[2].place) == f"data.files[1] ({objects}), line 1"


@pytest.mark.parametrize(
    ("kind", "line", "message"),
    [
        ("chat", '{"messages": [{"role": "us', "is not JSON"),
        ("chat", "[]", "no object"),
        ("chat", {"conversations": []}, "has no key messages"),
        ("chat", {"messages": "Hi"}, "no list of messages"),
        ("chat", {"messages": []}, "no list of messages"),
        ("chat", {"messages": ["Hi"]}, "is no message"),
        ("chat", {"messages": [{"role": "user"}]}, "is no message"),
        ("chat", {"messages": [{**USER, "tool_calls": []}, ANSWER]}, "tool_calls"),
        ("chat", {"messages": [{"role": "bot", "content": "x"}]}, "unknown role"),
        ("chat", {"messages": [{"role": ["user"], "content": "x"}]}, "unknown role"),
        ("chat", {"messages": [{"role": "user", "content": 3}]}, "is no text"),
        ("chat", {"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "is no text"),
        ("chat", {"messages": [USER, {"role": "assistant", "content": " "}]}, "says nothing"),
        ("chat", {"messages": [USER]}, "no assistant speaks"),
        ("chat", {"messages": [ANSWER, USER]}, "first to speak must be the user"),
        ("chat", {"messages": [{"role": "system", "content": "x"}]}, "must be the user"),
        ("chat", {"messages": [USER, {"role": "system", "content": ""}]}, "comes first or not"),
        ("chat", {"messages": [{**USER, "content": "\ud800"}, ANSWER]}, "half a character"),
        ("text", '{"text": "a"', "is not JSON"),
        ("text", {"txt": "a"}, "has no key text"),
        ("text", {"text": None}, "is no text"),
        ("text", {"text": ""}, "text is empty"),
        ("text", "[" * 100_000, "is not JSON"),
    ],
)
def test_a_wrong_line_is_refused_by_its_number(
    data: Any, kind: str, line: object, message: str
) -> None:
    spec = data(kind, GOOD if kind == "chat" else {"text": "fine"}, "", line)

    with pytest.raises(SpecError) as refused:
        check_files(spec)

    assert refused.value.subject.startswith(f"data.files[0] ({spec.files[0]}), line 3")
    assert message in str(refused.value)
    assert len(str(refused.value)) < 800


def test_bytes_that_are_no_text_are_refused_with_their_place(tmp_path: Path) -> None:
    file = tmp_path / "latin.txt"
    file.write_bytes(b"fine\nh\xe9ron\n")
    with pytest.raises(SpecError, match=r"line 2: is not UTF-8 text at byte 2"):
        check_files(spec_of("text", file))


@pytest.mark.parametrize("content", ["", "\n", " \n\t\n"])
def test_a_file_without_lines_is_refused(tmp_path: Path, content: str) -> None:
    full, empty = tmp_path / "full.txt", tmp_path / "empty.txt"
    full.write_text("x\n")
    empty.write_text(content)
    with pytest.raises(SpecError, match=r"data\.files\[1\] \(.*empty\.txt\): is empty"):
        check_files(spec_of("text", full, empty))


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("text", "absent.jsonl", "no such file"),
        ("text", ".", "not a file"),
        ("text", "data.csv", ".jsonl or .txt"),
        ("chat", "data.txt", "allowed: .jsonl"),
    ],
)
def test_what_is_no_data_file_is_refused(
    tmp_path: Path, kind: str, name: str, message: str
) -> None:
    (tmp_path / "data.csv").write_text("x")
    (tmp_path / "data.txt").write_text("x")
    with pytest.raises(SpecError) as refused:
        check_files(spec_of(kind, tmp_path / name))

    assert refused.value.subject == "data.files[0]"
    assert message in str(refused.value)


def test_a_folder_without_a_tokenizer_or_a_chat_template_is_refused(
    data: Any, tokenizer_dir: Path, tmp_path: Path
) -> None:
    chat, text = data("chat", GOOD), data("text", {"text": "x"}, name="t.jsonl")
    bare = tmp_path / "bare"
    bare.mkdir()
    with pytest.raises(SpecError, match="holds no tokenizer"):
        check_tokenizer(text, bare)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (bare / name).write_bytes((tokenizer_dir / name).read_bytes())

    check_tokenizer(text, bare)
    with pytest.raises(SpecError, match="has no chat template"):
        check_tokenizer(chat, bare)
    check_tokenizer(chat, tokenizer_dir)


def test_files_are_checked_without_torch_and_transformers(data: Any) -> None:
    spec = data("chat", GOOD)
    script = (
        "import sys; from rayline.data import check_files; from rayline.spec import DataSpec; "
        f"print(check_files(DataSpec.parse({spec.model_dump()!r})), "
        "'torch' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["1", "False", "False"]

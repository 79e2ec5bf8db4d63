"""The file of answers: taken up where it ended, whatever ended it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayline.errors import SpecError
from rayline.serving.batch import BatchAnswer, BatchOutput
from rayline.serving.batch.output import BatchSummary

IDS = [f"request-{number}" for number in range(8)]


def answer(custom_id: str, status: int = 200) -> BatchAnswer:
    body = {"text": "é" * 5} if status == 200 else {"error": {"message": "no", "code": "x"}}
    return BatchAnswer(custom_id, status, "req_1", body)


def opened(path: Path, *, retry_failed: bool = False) -> BatchOutput:
    return BatchOutput(path, IDS, retry_failed=retry_failed)


def ids_in(path: Path) -> list[str]:
    return [json.loads(line)["custom_id"] for line in path.read_bytes().splitlines()]


@given(
    before=st.lists(st.sampled_from(IDS), unique=True),
    cut=st.floats(0, 1),
    failed=st.sets(st.sampled_from(IDS)),
)
def test_after_a_cut_anywhere_whole_lines_are_kept_and_the_rest_is_asked(
    tmp_path_factory, before, cut, failed
) -> None:
    path = tmp_path_factory.mktemp("batch") / "out.jsonl"
    lines = [answer(i, 400 if i in failed else 200).to_line() for i in before]
    text = b"".join(lines)[: round(cut * sum(map(len, lines)))]
    path.write_bytes(text)
    # A last line that lacks nothing but its end is whole.
    whole = [i for i, line in zip(before, lines, strict=True) if line[:-1] in text]
    with opened(path) as output:
        assert output.done == set(whole)
        assert output.failed == failed & set(whole)
        for custom_id in IDS:
            if custom_id not in output.done:
                output.write(answer(custom_id))
        assert output.summary() == BatchSummary(
            len(IDS), len(whole), len(IDS) - len(whole), len(failed & set(whole))
        )
        assert output.summary().left == 0
    assert sorted(ids_in(path)) == sorted(IDS)


def test_lines_are_in_the_file_when_they_come(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with opened(path) as output:
        for count, custom_id in enumerate(IDS, start=1):
            output.write(answer(custom_id))
            assert len(ids_in(path)) == count


def test_failed_lines_are_asked_again_where_that_is_wanted(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_bytes(
        answer(IDS[0]).to_line() + answer(IDS[1], 400).to_line() + answer(IDS[2]).to_line()
    )
    with opened(path) as output:
        assert output.done == set(IDS[:3])
    with opened(path, retry_failed=True) as output:
        assert output.done == {IDS[0], IDS[2]}
        assert output.failed == set()
        output.write(answer(IDS[1]))
    assert ids_in(path) == [IDS[0], IDS[2], IDS[1]]
    assert [file.name for file in tmp_path.iterdir()] == ["out.jsonl"]


def test_a_file_that_another_batch_writes_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    with opened(path), pytest.raises(SpecError, match="another batch is writing it"):
        opened(path)
    with opened(path) as output:
        assert output.done == set()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"{}\n", "is no line of a batch's output"),
        (b"not JSON\n", "is no line of a batch's output"),
        (b"\n", "is no line of a batch's output"),
        (b'{"custom_id": "other", "error": null}\n', "answers 'other', which the input"),
    ],
)
def test_a_file_of_something_else_is_not_written_to(
    tmp_path: Path, line: bytes, words: str
) -> None:
    path = tmp_path / "out.jsonl"
    content = answer(IDS[0]).to_line() + line + answer(IDS[1]).to_line()
    path.write_bytes(content)
    with pytest.raises(SpecError, match=words) as refused:
        opened(path)
    assert refused.value.subject == f"{path}, line 2"
    assert path.read_bytes() == content


def test_a_file_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="cannot be written"):
        opened(tmp_path / "nowhere" / "out.jsonl")

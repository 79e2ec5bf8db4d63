"""OpenAI's batch format: what is read, and what is refused with its line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayline.errors import SpecError
from rayline.serving.batch import BatchAnswer, BatchFile
from rayline.serving.batch.lines import URLS, check_task
from rayline.spec import EngineSpec, RequestLimits

CHAT = "/v1/chat/completions"
BODY = {"model": "bot", "messages": [{"role": "user", "content": "hi"}]}


def line(custom_id: str = "a", **changes: Any) -> dict[str, Any]:
    return {"custom_id": custom_id, "method": "POST", "url": CHAT, "body": BODY, **changes}


def written(folder: Path, *lines: object) -> Path:
    file = folder / "in.jsonl"
    texts = [text if isinstance(text, str) else json.dumps(text) for text in lines]
    file.write_text("\n".join(texts) + "\n", encoding="utf-8")
    return file


def read(file: Path) -> BatchFile:
    return BatchFile.read(file, RequestLimits())


def test_lines_are_read_and_bodies_when_they_are_asked(tmp_path: Path) -> None:
    other = {"model": "bot", "prompt": "é\n😀"}
    lines = (line("a"), "", "   ", line("b", url="/v1/completions", body=other))
    file = read(written(tmp_path, *lines))
    assert [(one.number, one.custom_id, one.route) for one in file.lines] == [
        (1, "a", "chat"),
        (4, "b", "completions"),
    ]
    assert file.bodies(file.lines[::-1]) == [other, BODY]


def test_a_last_line_without_an_end_counts(tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    file.write_text(f"{json.dumps(line('a'))}\n{json.dumps(line('b'))}")
    found = read(file)
    assert [one.custom_id for one in found.lines] == ["a", "b"]
    assert found.bodies(found.lines) == [BODY, BODY]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ("{", "The line is not valid JSON"),
        ("[]", "it must be an object"),
        ('{"custom_id": "a", "custom_id": "b"}', "the same name twice"),
        ('{"x": NaN}', "NaN"),
        ("[" * 50_001, "not valid JSON"),
        ({"method": "POST", "url": CHAT, "body": BODY}, "has no 'custom_id'"),
        ({"custom_id": "b", "url": CHAT, "body": BODY}, "has no 'method'"),
        ({"custom_id": "b", "method": "POST", "body": BODY}, "has no 'url'"),
        ({"custom_id": "b", "method": "POST", "url": CHAT}, "has no 'body'"),
        (line("b", priority=1), "holds 'priority'"),
        (line(""), "custom_id is no text of 1 to 512 characters"),
        (line("b" * 513), "custom_id is no text"),
        ({**line("b"), "custom_id": 7}, "custom_id is no text"),
        (line("a"), "custom_id 'a' stands in line 1, too"),
        (line("b", method="GET"), "method is 'GET'"),
        (line("b", url="/v1/models"), "url is '/v1/models'"),
        (line("b", url="http://127.0.0.1/v1/chat/completions"), "url is 'http://"),
        (line("b", url="/v1/../tokenize"), "url is '/v1/../tokenize'"),
        (line("b", url=["x"]), "url is"),
        (line("b", body="x"), "body is no object"),
        (line("b", body={**BODY, "stream": True}), "body asks for a stream"),
    ],
)
def test_a_wrong_line_is_refused_by_its_number(tmp_path: Path, wrong: object, words: str) -> None:
    file = written(tmp_path, line("a"), wrong, line("c"))
    with pytest.raises(SpecError) as refused:
        read(file)
    assert refused.value.subject == f"{file}, line 2"
    assert words in refused.value.problem


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_bytes(json.dumps(line()).encode() + b"\n\xff\xfe\n")
    with pytest.raises(SpecError, match="line 2: The line is not valid JSON: it is not UTF-8"):
        read(tmp_path / "in.jsonl")


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_a_file_without_requests_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "in.jsonl").write_text(content)
    with pytest.raises(SpecError, match="holds no request"):
        read(tmp_path / "in.jsonl")


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere.jsonl", tmp_path):
        with pytest.raises(SpecError, match="cannot be read"):
            read(path)


@pytest.mark.parametrize(
    ("task", "url", "answered"),
    [
        ("generate", CHAT, True),
        ("generate", "/v1/embeddings", False),
        ("embed", "/v1/embeddings", True),
        ("embed", CHAT, False),
        ("score", "/v1/score", True),
        ("score", "/v1/rerank", True),
        ("score", "/v1/embeddings", False),
    ],
)
def test_lines_that_the_engines_task_does_not_answer_are_refused(
    tmp_path: Path, task: str, url: str, answered: bool
) -> None:
    file = read(written(tmp_path, line(url=url)))
    engine = EngineSpec(task=task)  # type: ignore[arg-type]
    if answered:
        check_task(file, engine)
        return
    with pytest.raises(SpecError, match=f"asks {url}, which task {task} does not answer"):
        check_task(file, engine)


def test_no_route_of_the_servers_own_can_be_asked() -> None:
    assert set(URLS) == {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/responses",
        "/v1/score",
        "/v1/rerank",
    }


def test_an_answer_is_a_line_in_openais_shape() -> None:
    text = BatchAnswer("a", 200, "req_1", {"choices": ["é\n"]}).to_line()
    assert text.endswith(b"\n")
    assert text.count(b"\n") == 1
    tree = json.loads(text)
    assert tree.pop("id").startswith("batch_req_")
    assert tree == {
        "custom_id": "a",
        "response": {"status_code": 200, "request_id": "req_1", "body": {"choices": ["é\n"]}},
        "error": None,
    }


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (
            {"error": {"message": "no", "code": "context_length_exceeded"}},
            {"code": "context_length_exceeded", "message": "no"},
        ),
        ({"error": {"message": "no", "code": None}}, {"code": "http_400", "message": "no"}),
        ({"error": "no"}, {"code": "http_400", "message": "HTTP 400"}),
        ({}, {"code": "http_400", "message": "HTTP 400"}),
    ],
)
def test_a_refusal_stands_in_the_error_field_of_its_line(
    body: dict[str, Any], error: dict[str, str]
) -> None:
    answer = BatchAnswer("a", 400, "req_1", body)
    assert answer.failed
    tree = json.loads(answer.to_line())
    assert tree["error"] == error
    assert tree["response"]["body"] == body


@given(
    ids=st.lists(
        st.text(min_size=1, max_size=20).filter(lambda text: text.isprintable()),
        min_size=1,
        max_size=8,
        unique=True,
    ),
    prompts=st.lists(st.text(max_size=40), min_size=8, max_size=8),
)
def test_every_body_comes_back_as_it_was(tmp_path_factory, ids, prompts) -> None:
    bodies = [{"model": "m", "prompt": prompt} for prompt, _ in zip(prompts, ids, strict=False)]
    lines = [line(i, body=body) for i, body in zip(ids, bodies, strict=False)]
    file = read(written(tmp_path_factory.mktemp("batch"), *lines))
    assert [one.custom_id for one in file.lines] == ids
    assert file.bodies(file.lines) == bodies

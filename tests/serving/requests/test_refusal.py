"""What a refusal looks like, and what it keeps to itself."""

from __future__ import annotations

import pytest

from rayline.serving.requests import Refusal, engine_failed, event, refused_by_engine


def test_a_refusal_has_openais_four_fields():
    assert Refusal(400, "no", param="n", code="invalid_value").body() == {
        "error": {
            "message": "no",
            "type": "invalid_request_error",
            "param": "n",
            "code": "invalid_value",
        }
    }


def test_an_error_inside_the_engine_keeps_its_words_to_itself():
    found = refused_by_engine(500, 'File "/srv/app/model.py", line 3: CUDA error', None)
    assert found == engine_failed()
    assert "/srv" not in found.message


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("cannot read /srv/models/x/config.json", "cannot read a file"),
        ("cannot read 'file:///srv/x.json'", "cannot read 'a file'"),
        (
            "The model does not support /v1/embeddings.",
            "The model does not support /v1/embeddings.",
        ),
        ("and/or 1/2 a/b", "and/or 1/2 a/b"),
        ('no\nTraceback (most recent call last):\n  File "x.py"', "no"),
        ("x" * 9000, "x" * 500),
    ],
)
def test_what_the_engine_says_of_a_wrong_request_names_no_file(said, shown):
    assert refused_by_engine(400, said, None).message == shown


def test_a_prompt_that_is_too_long_bears_openais_code():
    found = refused_by_engine(400, "This model's maximum context length is 64 tokens.", None)
    assert (found.status, found.code) == (400, "context_length_exceeded")


def test_a_wrong_type_is_400_and_not_422():
    assert refused_by_engine(422, "max_tokens: wrong type", "max_tokens").status == 400


def test_an_event_is_one_line_and_a_blank_one():
    assert event({"a": "é\n"}) == 'data: {"a": "é\\n"}\n\n'

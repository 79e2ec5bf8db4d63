"""Which requests pass to the engine, and how the others are refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayline.serving.requests import (
    MAX_BODY_BYTES,
    MAX_CHOICES,
    Refusal,
    RefusedError,
    engine_failed,
    event,
    parse_request,
    refused_by_engine,
)

HELLO = [{"role": "user", "content": "hello"}]


def refusal(body: object, route: str = "chat") -> Refusal:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(RefusedError) as refused:
        parse_request(route, raw, "bot")
    return refused.value.refusal


@pytest.mark.parametrize(
    ("body", "status", "param", "code"),
    [
        (b"", 400, None, "invalid_json"),
        (b'{"model": "bot", ', 400, None, "invalid_json"),
        (b'{"model": "bot", "temperature": NaN}', 400, None, "invalid_json"),
        (b"\xff\xfe", 400, None, "invalid_json"),
        (b"[" * 100_000, 400, None, "invalid_json"),
        (b"[]", 400, None, "invalid_json"),
        (b'"hello"', 400, None, "invalid_json"),
        ({"messages": HELLO}, 400, "model", "missing_parameter"),
        ({"model": 7, "messages": HELLO}, 400, "model", "invalid_type"),
        ({"model": "other", "messages": HELLO}, 404, "model", "model_not_found"),
        ({"model": "bot"}, 400, "messages", "missing_parameter"),
        ({"model": "bot", "messages": []}, 400, "messages", "missing_parameter"),
        ({"model": "bot", "messages": HELLO, "n": 0}, 400, "n", "invalid_value"),
        ({"model": "bot", "messages": HELLO, "n": MAX_CHOICES + 1}, 400, "n", "invalid_value"),
        ({"model": "bot", "messages": HELLO, "n": True}, 400, "n", "invalid_type"),
        ({"model": "bot", "messages": HELLO, "stop": ["a"] * 99}, 400, "stop", "invalid_value"),
        ({"model": "bot", "messages": HELLO, "prompt": "x"}, 400, "prompt", "unknown_parameter"),
        (b"x" * (MAX_BODY_BYTES + 1), 413, None, "body_too_large"),
    ],
)
def test_what_cannot_be_answered_is_refused_before_the_engine(body, status, param, code):
    found = refusal(body)
    assert (found.status, found.param, found.code) == (status, param, code)


@pytest.mark.parametrize(
    "field",
    [
        "chat_template",
        "chat_template_kwargs",
        "kv_transfer_params",
        "prompt_embeds",
        "priority",
        "request_id",
        "mm_processor_kwargs",
        "structured_outputs",
        "vllm_xargs",
        "cache_salt",
    ],
)
@pytest.mark.parametrize("route", ["chat", "completions"])
def test_fields_that_are_the_servers_business_are_refused(field, route):
    body = (
        {"model": "bot", "messages": HELLO} if route == "chat" else {"model": "bot", "prompt": "x"}
    )
    found = refusal({**body, field: {}}, route)
    assert (found.status, found.param, found.code) == (400, field, "unknown_parameter")


def test_a_misspelt_field_is_answered_with_the_nearest_one():
    found = refusal({"model": "bot", "messages": HELLO, "temprature": 0.5})
    assert "Did you mean 'temperature'?" in found.message


def test_a_request_passes_unchanged():
    body = {"model": "bot", "messages": HELLO, "temperature": 0, "stream": True, "top_k": 5}
    assert parse_request("chat", json.dumps(body).encode(), "bot") == body


@given(st.binary(max_size=200))
def test_a_body_of_noise_is_refused_as_the_clients_mistake(body):
    found = refusal(body, "completions")
    assert 400 <= found.status < 500
    assert set(found.body()["error"]) == {"message", "type", "param", "code"}


def test_an_error_inside_the_engine_keeps_its_words_to_itself():
    found = refused_by_engine(500, 'File "/srv/app/model.py", line 3: CUDA error', None)
    assert found == engine_failed()
    assert "/srv" not in found.message


def test_a_prompt_that_is_too_long_bears_openais_code():
    found = refused_by_engine(400, "This model's maximum context length is 64 tokens.", None)
    assert (found.status, found.code) == (400, "context_length_exceeded")


def test_a_wrong_type_is_400_and_not_422():
    assert refused_by_engine(422, "max_tokens: wrong type", "max_tokens").status == 400


def test_an_event_is_one_line_and_a_blank_one():
    assert event({"a": "é\n"}) == 'data: {"a": "é\\n"}\n\n'

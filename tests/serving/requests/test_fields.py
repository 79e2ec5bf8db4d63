"""What each route takes, and how everything else is refused: by type, bound and name."""

from __future__ import annotations

import json

import pytest

from rayline.serving.requests import RefusedError, Route, parse_request
from rayline.serving.requests.fields import WITHHELD
from support.asking import CALLED, HELLO, LIMITS, PLAIN, SCHEMA, WEATHER, encoded, refused

FORMAT = {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA}}
CALL_ITEM = {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"}


def said(content: object, role: str = "user", **more: object) -> dict[str, object]:
    return {"messages": [{"role": role, "content": content, **more}]}


def called(arguments: str) -> dict[str, object]:
    return {**CALLED, "function": {"name": "f", "arguments": arguments}}


PASSES: list[tuple[Route, dict[str, object]]] = [
    *((route, {}) for route in PLAIN),
    ("chat", {"temperature": 0, "stream": True, "stream_options": {"include_usage": True}}),
    ("chat", {"max_tokens": 5, "max_completion_tokens": None, "n": None, "stop": None}),
    ("chat", {"logprobs": True, "top_logprobs": 5, "seed": -1, "logit_bias": {"17": -100}}),
    ("chat", {"stop": ["a", "b"], "metadata": {"run": "7"}, "store": False, "user": "u"}),
    ("chat", {"tools": [WEATHER], "tool_choice": "auto", "parallel_tool_calls": False}),
    ("chat", {"tools": [WEATHER], "tool_choice": "required"}),
    (
        "chat",
        {
            "tools": [WEATHER],
            "tool_choice": {"type": "function", "function": {"name": "weather"}},
        },
    ),
    ("chat", {"response_format": FORMAT}),
    ("chat", {"response_format": {"type": "json_object"}}),
    ("chat", {"response_format": {"type": "text"}}),
    ("chat", {"structured_outputs": {"regex": r"[a-z]+@[a-z]+\.com"}}),
    ("chat", {"structured_outputs": {"choice": ["yes", "no"]}}),
    ("chat", {"reasoning_effort": "none"}),
    ("chat", said([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])),
    ("chat", said("be brief", "system", name="ops")),
    ("chat", said("be brief", "developer")),
    ("chat", said(None, "assistant", tool_calls=[CALLED])),
    ("chat", said("4", "tool", tool_call_id="c1")),
    (
        "chat",
        said("hi", "assistant", refusal=None, audio=None, annotations=[], tool_calls=None),
    ),
    ("chat", said("hi", "assistant", reasoning="hm", function_call=None)),
    # What a model made of arguments may be no JSON at all.
    (
        "chat",
        said(None, "assistant", tool_calls=[called("{x")]),
    ),
    ("completions", {"prompt": [1, 2, 3], "logprobs": 3, "echo": True, "max_tokens": 0}),
    ("completions", {"prompt": ["a", "b"], "n": 2}),
    ("completions", {"prompt": [[1, 2], [3]]}),
    ("completions", {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1, "ignore_eos": True}),
    ("embeddings", {"input": ["a"] * 2048, "encoding_format": "base64", "dimensions": 64}),
    ("embeddings", {"input": [[1, 2], [3]], "user": "u"}),
    ("responses", {"instructions": "be brief", "max_output_tokens": 9, "stream": True}),
    ("responses", {"input": [{"role": "user", "content": "hi"}], "store": False}),
    (
        "responses",
        {
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
                {"type": "reasoning", "id": "r1", "summary": [], "encrypted_content": None},
                {
                    "type": "message",
                    "role": "assistant",
                    "id": "m1",
                    "status": "completed",
                    "content": [{"type": "output_text", "text": "hi", "annotations": []}],
                },
                CALL_ITEM,
                {"type": "function_call_output", "call_id": "c1", "output": "4"},
            ]
        },
    ),
    (
        "responses",
        {
            "tools": [{"type": "function", "name": "weather", "parameters": SCHEMA}],
            "tool_choice": {"type": "function", "name": "weather"},
        },
    ),
    (
        "responses",
        {"text": {"format": {"type": "json_schema", "name": "city", "schema": SCHEMA}}},
    ),
    ("rerank", {"top_n": 1}),
    ("tokenize", {"prompt": None, "messages": HELLO, "tools": [WEATHER]}),
    ("detokenize", {"tokens": []}),
]


@pytest.mark.parametrize(("route", "changes"), PASSES)
def test_what_clients_send_in_earnest_passes(route, changes):
    parse_request(route, encoded({**PLAIN[route], **changes}), LIMITS)


def image(kind: str) -> dict[str, object]:
    return {"type": kind, kind: {"url": "http://169.254.169.254/latest/meta-data"}}


REFUSED: list[tuple[Route, dict[str, object], str, str]] = [
    # Types and bounds of plain values.
    ("chat", {"model": None}, "model", "invalid_type"),
    ("chat", {"model": 7}, "model", "invalid_type"),
    ("chat", {"model": ""}, "model", "empty_string"),
    ("chat", {"model": "m" * 257}, "model", "string_above_max_length"),
    ("chat", {"temperature": "hot"}, "temperature", "invalid_type"),
    ("chat", {"temperature": True}, "temperature", "invalid_type"),
    ("chat", {"temperature": 2.1}, "temperature", "decimal_above_max_value"),
    ("chat", {"temperature": -0.1}, "temperature", "decimal_below_min_value"),
    ("chat", {"temperature": 10**400}, "temperature", "decimal_above_max_value"),
    ("chat", {"top_p": 0}, "top_p", "decimal_below_min_value"),
    ("chat", {"presence_penalty": 3}, "presence_penalty", "decimal_above_max_value"),
    ("chat", {"repetition_penalty": 0}, "repetition_penalty", "decimal_below_min_value"),
    ("chat", {"n": 0}, "n", "integer_below_min_value"),
    ("chat", {"n": 17}, "n", "integer_above_max_value"),
    ("chat", {"n": True}, "n", "invalid_type"),
    ("chat", {"n": 1.0}, "n", "invalid_type"),
    ("chat", {"n": "2"}, "n", "invalid_type"),
    ("chat", {"seed": 2**63}, "seed", "integer_above_max_value"),
    ("chat", {"stream": "yes"}, "stream", "invalid_type"),
    ("chat", {"stream": 1}, "stream", "invalid_type"),
    ("chat", {"max_tokens": 0}, "max_tokens", "integer_below_min_value"),
    ("chat", {"max_tokens": -1}, "max_tokens", "integer_below_min_value"),
    ("chat", {"max_tokens": 10**30}, "max_tokens", "integer_above_max_value"),
    (
        "chat",
        {"max_completion_tokens": 2**17 + 1},
        "max_completion_tokens",
        "integer_above_max_value",
    ),
    ("chat", {"min_tokens": 2**17 + 1}, "min_tokens", "integer_above_max_value"),
    ("chat", {"top_k": -2}, "top_k", "integer_below_min_value"),
    ("chat", {"top_logprobs": 21, "logprobs": True}, "top_logprobs", "integer_above_max_value"),
    ("completions", {"logprobs": -1}, "logprobs", "integer_below_min_value"),
    ("chat", {"reasoning_effort": "huge"}, "reasoning_effort", "invalid_value"),
    ("chat", {"service_tier": "priority"}, "service_tier", "invalid_value"),
    ("chat", {"store": True}, "store", "unsupported_value"),
    ("chat", {"user": "u" * 513}, "user", "string_above_max_length"),
    # Lists and maps.
    ("chat", {"stop": ["a"] * 5}, "stop", "array_above_max_length"),
    ("chat", {"stop": "s" * 257}, "stop", "string_above_max_length"),
    ("chat", {"stop": [""]}, "stop[0]", "empty_string"),
    ("chat", {"stop": [1]}, "stop[0]", "invalid_type"),
    ("chat", {"stop": {}}, "stop", "invalid_type"),
    ("chat", {"stop_token_ids": [1] * 129}, "stop_token_ids", "array_above_max_length"),
    ("chat", {"stop_token_ids": [-1]}, "stop_token_ids", "invalid_value"),
    ("chat", {"stop_token_ids": [2**31]}, "stop_token_ids", "invalid_value"),
    ("chat", {"bad_words": ["w"] * 65}, "bad_words", "array_above_max_length"),
    (
        "chat",
        {"logit_bias": {str(t): 1 for t in range(301)}},
        "logit_bias",
        "object_above_max_length",
    ),
    ("chat", {"logit_bias": {"5": 101}}, "logit_bias", "decimal_above_max_value"),
    ("chat", {"logit_bias": {"-5": 1}}, "logit_bias", "invalid_value"),
    ("chat", {"logit_bias": {"99999999": 1}}, "logit_bias", "string_above_max_length"),
    ("chat", {"logit_bias": [1]}, "logit_bias", "invalid_type"),
    ("chat", {"metadata": {str(k): "v" for k in range(17)}}, "metadata", "object_above_max_length"),
    ("chat", {"metadata": {"k" * 65: "v"}}, "metadata", "string_above_max_length"),
    ("chat", {"metadata": {"k": "v" * 513}}, "metadata", "string_above_max_length"),
    ("chat", {"metadata": {"k": 1}}, "metadata", "invalid_type"),
    # Messages.
    ("chat", {"messages": "hello"}, "messages", "invalid_type"),
    ("chat", {"messages": None}, "messages", "invalid_type"),
    ("chat", {"messages": []}, "messages", "empty_array"),
    ("chat", {"messages": HELLO * 2049}, "messages", "array_above_max_length"),
    ("chat", {"messages": [1]}, "messages[0]", "invalid_type"),
    ("chat", {"messages": [{"content": "hi"}]}, "messages[0].role", "missing_required_parameter"),
    ("chat", {"messages": [{"role": "user"}]}, "messages[0].content", "missing_required_parameter"),
    ("chat", said("hi", "function"), "messages[0].role", "invalid_value"),
    ("chat", said("hi", "root"), "messages[0].role", "invalid_value"),
    ("chat", said(None), "messages[0].content", "invalid_type"),
    ("chat", said(7), "messages[0].content", "invalid_type"),
    ("chat", said({}), "messages[0].content", "invalid_type"),
    ("chat", said(["hi"]), "messages[0].content[0]", "invalid_type"),
    ("chat", said("4", "tool"), "messages[0].tool_call_id", "missing_required_parameter"),
    ("chat", said("hi", weight=1), "messages[0].weight", "unknown_parameter"),
    ("chat", said("hi", "assistant", audio={"id": "a"}), "messages[0].audio", "unsupported_value"),
    ("chat", said("x" * (2**20 + 1)), "messages[0].content", "string_above_max_length"),
    (
        "chat",
        said([{"type": "text", "text": "a"}] * 257),
        "messages[0].content",
        "array_above_max_length",
    ),
    ("chat", said([{"type": "text"}]), "messages[0].content[0].text", "missing_required_parameter"),
    ("chat", said([{"text": "a"}]), "messages[0].content[0].type", "missing_required_parameter"),
    *(
        ("chat", said([image(kind)]), "messages[0].content[0].type", "invalid_value")
        for kind in ("image_url", "video_url", "audio_url", "input_audio", "file", "image_embeds")
    ),
    # Without a type, vLLM would take the part for what it holds.
    (
        "chat",
        said([{"image_url": "http://127.0.0.1/"}]),
        "messages[0].content[0].type",
        "missing_required_parameter",
    ),
    (
        "chat",
        said([{"type": "text", "text": "a", "uuid": "u", "image_url": "http://127.0.0.1/"}]),
        "messages[0].content[0].uuid",
        "unknown_parameter",
    ),
    (
        "chat",
        said(None, "assistant", tool_calls=[called("[" * 999)]),
        "messages[0].tool_calls[0].function.arguments",
        "invalid_value",
    ),
    (
        "chat",
        said(None, "assistant", tool_calls=[called("9" * 4301)]),
        "messages[0].tool_calls[0].function.arguments",
        "invalid_value",
    ),
    (
        "chat",
        said(
            None,
            "assistant",
            tool_calls=[called('{"a": "\\ud800"}')],
        ),
        "messages[0].tool_calls[0].function.arguments",
        "invalid_value",
    ),
    # Tools and formats.
    ("chat", {"tools": []}, "tools", "empty_array"),
    ("chat", {"tools": [WEATHER] * 129}, "tools", "array_above_max_length"),
    ("chat", {"tools": [{"type": "mcp"}]}, "tools[0].type", "invalid_value"),
    (
        "chat",
        {"tools": [{"type": "function", "function": {"name": "a b"}}]},
        "tools[0].function.name",
        "invalid_value",
    ),
    ("chat", {"tool_choice": "required"}, "tool_choice", "invalid_value"),
    ("chat", {"tool_choice": "auto"}, "tool_choice", "invalid_value"),
    (
        "chat",
        said(None, "assistant", tool_calls=[{"type": "function", "function": {"name": "f"}}]),
        "messages[0].tool_calls[0].function.arguments",
        "missing_required_parameter",
    ),
    ("chat", {"tools": [WEATHER], "tool_choice": "any"}, "tool_choice", "invalid_value"),
    (
        "chat",
        {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "other"}}},
        "tool_choice",
        "invalid_value",
    ),
    (
        "chat",
        {"response_format": {"type": "structural_tag"}},
        "response_format.type",
        "invalid_value",
    ),
    (
        "chat",
        {"response_format": {"type": "json_schema"}},
        "response_format.json_schema",
        "missing_required_parameter",
    ),
    (
        "chat",
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": []}}},
        "response_format.json_schema.schema",
        "invalid_type",
    ),
    ("chat", {"structured_outputs": {}}, "structured_outputs", "invalid_value"),
    (
        "chat",
        {"structured_outputs": {"regex": "a", "choice": ["b"]}},
        "structured_outputs",
        "invalid_value",
    ),
    (
        "chat",
        {"structured_outputs": {"grammar": "root ::= root root"}},
        "structured_outputs.grammar",
        "unknown_parameter",
    ),
    (
        "chat",
        {"structured_outputs": {"json_object": False}},
        "structured_outputs.json_object",
        "unsupported_value",
    ),
    ("chat", {"structured_outputs": {"choice": []}}, "structured_outputs.choice", "empty_array"),
    # Fields that contradict each other.
    ("chat", {"stream_options": {"include_usage": True}}, "stream_options", "invalid_value"),
    ("chat", {"top_logprobs": 2}, "top_logprobs", "invalid_value"),
    ("chat", {"min_tokens": 9, "max_tokens": 5}, "min_tokens", "invalid_value"),
    ("chat", {"n": 2, "temperature": 0}, "n", "invalid_value"),
    (
        "chat",
        {"response_format": FORMAT, "structured_outputs": {"regex": "a"}},
        "structured_outputs",
        "invalid_value",
    ),
    (
        "chat",
        {"continue_final_message": True, "add_generation_prompt": True},
        "continue_final_message",
        "invalid_value",
    ),
    ("completions", {"max_tokens": 0}, "max_tokens", "invalid_value"),
    ("completions", {"prompt": ["a"] * 5, "n": 16}, "n", "invalid_value"),
    # Prompts.
    ("completions", {"prompt": None}, "prompt", "invalid_type"),
    ("completions", {"prompt": ""}, "prompt", "empty_string"),
    ("completions", {"prompt": []}, "prompt", "empty_array"),
    ("completions", {"prompt": {"a": 1}}, "prompt", "invalid_type"),
    ("completions", {"prompt": [1, "a"]}, "prompt[1]", "invalid_type"),
    ("completions", {"prompt": ["a", 1]}, "prompt[1]", "invalid_type"),
    ("completions", {"prompt": [True]}, "prompt[0]", "invalid_type"),
    ("completions", {"prompt": [1.5]}, "prompt[0]", "invalid_type"),
    ("completions", {"prompt": [-1]}, "prompt", "invalid_value"),
    ("completions", {"prompt": [2**40]}, "prompt", "invalid_value"),
    ("completions", {"prompt": [[1], []]}, "prompt[1]", "empty_array"),
    ("completions", {"prompt": [[[1]]]}, "prompt[0][0]", "invalid_type"),
    ("completions", {"prompt": ["a"] * 65}, "prompt", "array_above_max_length"),
    ("embeddings", {"input": ["a"] * 2049}, "input", "array_above_max_length"),
    ("embeddings", {"input": [""]}, "input[0]", "empty_string"),
    ("embeddings", {"messages": HELLO}, "messages", "unknown_parameter"),
    ("embeddings", {"dimensions": 0}, "dimensions", "integer_below_min_value"),
    ("embeddings", {"encoding_format": "bytes"}, "encoding_format", "invalid_value"),
    ("score", {"documents": None}, "queries", "missing_required_parameter"),
    ("score", {"text_1": "a", "text_2": "b"}, "queries", "missing_required_parameter"),
    ("score", {"queries": ["a", "b", "c"]}, "queries", "invalid_value"),
    ("score", {"documents": [{"image_url": "x"}]}, "documents[0]", "invalid_type"),
    ("rerank", {"query": ["a"]}, "query", "invalid_type"),
    ("rerank", {"documents": []}, "documents", "empty_array"),
    ("tokenize", {"messages": HELLO}, "prompt", "invalid_value"),
    ("tokenize", {"prompt": None}, "prompt", "invalid_value"),
    ("tokenize", {"prompt": "x" * (2**20 + 1)}, "prompt", "string_above_max_length"),
    ("detokenize", {"tokens": [2**63]}, "tokens", "invalid_value"),
    ("detokenize", {"tokens": "1"}, "tokens", "invalid_type"),
    # The Responses API keeps nothing and reaches out to nobody.
    ("responses", {"input": []}, "input", "empty_array"),
    ("responses", {"background": True}, "background", "unknown_parameter"),
    ("responses", {"previous_response_id": "r"}, "previous_response_id", "unknown_parameter"),
    ("responses", {"store": True}, "store", "unsupported_value"),
    (
        "responses",
        {"tools": [{"type": "mcp", "server_url": "http://x"}]},
        "tools[0].type",
        "invalid_value",
    ),
    ("responses", {"tools": [{"type": "web_search"}]}, "tools[0].type", "invalid_value"),
    (
        "responses",
        {
            "input": [
                {"role": "user", "content": [{"type": "input_image", "image_url": "http://x"}]}
            ]
        },
        "input[0].content[0].type",
        "invalid_value",
    ),
    (
        "responses",
        {"input": [{"type": "item_reference", "id": "x"}]},
        "input[0].type",
        "invalid_value",
    ),
]


@pytest.mark.parametrize(("route", "changes", "param", "code"), REFUSED)
def test_what_is_wrong_is_refused_before_the_engine(route, changes, param, code):
    found = refused(changes, route)
    assert (found.status, found.param, found.code) == (400, param, code)
    assert set(found.body()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize("field", sorted(WITHHELD))
@pytest.mark.parametrize("route", sorted(PLAIN))
def test_fields_that_are_no_clients_business_are_refused_with_the_reason(field, route):
    for value in ({}, "x", 1, None, [1]):
        found = refused({field: value}, route)
        assert (found.status, found.param, found.code) == (400, field, "unknown_parameter")
        assert WITHHELD[field] in found.message


def test_a_misspelt_field_is_answered_with_the_nearest_one():
    assert "Did you mean 'temperature'?" in refused({"temprature": 0.5}).message


@pytest.mark.parametrize("route", sorted(PLAIN))
def test_every_field_that_is_required_is_missed(route):
    for name in PLAIN[route]:
        tree = {key: value for key, value in PLAIN[route].items() if key != name}
        with pytest.raises(RefusedError) as missed:
            parse_request(route, encoded(tree), LIMITS)
        assert missed.value.refusal.status == 400


def test_a_refusal_repeats_nothing_that_a_client_wrote():
    secret = "CANARY-7f3a"
    for route, changes, _, _ in REFUSED:
        text = json.dumps({**PLAIN[route], **changes})
        for spelt in (
            text.replace("hello", secret).replace("Once", secret).replace('"hi"', f'"{secret}"'),
            text.replace('"root"', f'"{secret}"').replace('"hot"', f'"{secret}"'),
        ):
            with pytest.raises(RefusedError) as found:
                parse_request(route, spelt.encode(), LIMITS)
            assert secret not in json.dumps(found.value.refusal.body())
    assert secret not in refused({f"{secret} {secret}": 1}).message


@pytest.mark.parametrize(
    ("changes", "limits"),
    [
        ({"n": 3}, {"max_choices": 2}),
        ({"n": 3}, {"max_sequences": 2}),
        ({"max_tokens": 11}, {"max_output_tokens": 10}),
        ({"stop": ["a", "b"]}, {"max_stops": 1}),
        ({"messages": HELLO * 3}, {"max_messages": 2}),
        ({"messages": [{"role": "user", "content": "hello"}]}, {"max_text_chars": 4}),
        ({"logprobs": True, "top_logprobs": 1}, {"max_top_logprobs": 0}),
        ({"metadata": {"a": "b"}}, {"max_metadata": 0}),
        ({"user": "u" * 500}, {"max_body_bytes": 1024, "max_text_chars": 400}),
        ({"tools": [WEATHER, WEATHER]}, {"max_tools": 1}),
        ({"tools": [WEATHER]}, {"max_schema_bytes": 64}),
        ({"tools": [WEATHER]}, {"max_schema_depth": 2}),
        ({"stop_token_ids": [101]}, {"max_token_id": 100}),
    ],
)
def test_limits_are_the_deployments_own(changes, limits):
    if "user" in changes:
        changes = {**changes, "messages": [{"role": "user", "content": "x" * 900}]}
    assert refused(changes, "chat", **limits).status in (400, 413)

"""JSON Schemas of clients: their size, where they lead, and what they would cost as grammars."""

from __future__ import annotations

import pytest

from rayline.serving.requests import parse_request
from support.asking import LIMITS, PLAIN, crossed, encoded, refusal, refused


def answered_by(schema: object) -> dict[str, object]:
    named = {"name": "answer", "schema": schema}
    return {"response_format": {"type": "json_schema", "json_schema": named}}


def called_with(schema: object, **more: object) -> dict[str, object]:
    function = {"name": "f", "parameters": schema}
    return {"tools": [{"type": "function", "function": {**function, **more}}]}


def nested(levels: int) -> dict[str, object]:
    schema: dict[str, object] = {"type": "integer"}
    for _ in range(levels):
        schema = {"items": schema}
    return schema


COSTLY = [
    crossed(3, 5),
    crossed(2, 40),
    {"$defs": {"a": {"anyOf": [{}] * 9}}, "allOf": [{"$ref": "#/$defs/a"}] * 4},
    {"type": "array", "items": {"type": "integer"}, "maxItems": 10**9},
    {"type": "string", "maxLength": 10**9},
    {"type": "string", "minLength": 10_001},
    {"type": "object", "minProperties": 10**6},
    {"type": "integer", "maximum": 10**30},
    {"type": "number", "multipleOf": 1e300},
    {"type": "string", "pattern": "((a*)*)*"},
    {"type": "string", "pattern": "(?=a)b"},
    {"type": "object", "patternProperties": {"((a+)+)+": {}}},
    {"enum": [f"value {number}" for number in range(1001)]},
    {"type": "object", "properties": {f"p{number}": {} for number in range(1001)}},
    {"anyOf": [{"type": "array", "maxItems": 10**9}]},
    {"$defs": {"a": {"maxItems": 10**9}}, "$ref": "#/$defs/a"},
    {"type": "object", "properties": {"maxItems": {"maxLength": 10**9}}},
]


@pytest.mark.parametrize("schema", COSTLY)
def test_a_schema_that_steers_is_bounded(schema):
    assert refused(answered_by(schema)).status == 400
    assert refused({"structured_outputs": {"json": schema}}).status == 400
    assert refused(called_with(schema, strict=True)).status == 400
    assert refused({**called_with(schema), "tool_choice": "required"}).status == 400
    by_name = {"type": "function", "function": {"name": "f"}}
    assert refused({**called_with(schema), "tool_choice": by_name}).status == 400


@pytest.mark.parametrize("schema", COSTLY)
def test_a_schema_that_is_only_shown_to_the_model_may_say_more(schema):
    parse_request("chat", encoded({**PLAIN["chat"], **called_with(schema)}), LIMITS)


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "http://169.254.169.254/latest"},
        {"$ref": "file:///etc/passwd"},
        {"$ref": "other.json#/a"},
        {"properties": {"a": {"$dynamicRef": "http://127.0.0.1/"}}},
        {"$ref": 7},
        nested(32),
        {"description": "x" * 70_000},
    ],
)
@pytest.mark.parametrize("place", [answered_by, called_with])
def test_size_depth_and_references_are_bounded_everywhere(schema, place):
    assert refused(place(schema)).status == 400


def test_an_infinite_number_is_refused():
    body = encoded({**PLAIN["chat"], **called_with({"maximum": 8888})}).replace(b"8888", b"1e999")
    assert b"1e999" in body
    assert refusal(body).code == "invalid_schema"


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "object", "properties": {"pattern": {"type": "string"}, "enum": {}}},
        {"type": "object", "properties": {"$ref": {"type": "string"}}},
        {"enum": ["((("], "default": {"pattern": "((("}, "const": {"maxItems": 10**9}},
        {
            "$defs": {"node": {"properties": {"next": {"$ref": "#/$defs/node"}}}},
            "$ref": "#/$defs/node",
        },
        {"type": ["string", "null"], "maxLength": 10_000, "pattern": "^[a-z]+$"},
        {"type": "integer", "minimum": -(2**53), "exclusiveMaximum": 2**53},
        nested(31),
        crossed(2, 15),
        {"allOf": [{"$ref": "#/$defs/a"}], "$defs": {"a": {"anyOf": [{}] * 99}}},
        {
            "allOf": [{"properties": {"a": {"anyOf": [{"type": "string"}, {"type": "null"}]}}}] * 9,
        },
    ],
)
def test_schemas_that_people_write_are_served(schema):
    parse_request("chat", encoded({**PLAIN["chat"], **answered_by(schema)}), LIMITS)

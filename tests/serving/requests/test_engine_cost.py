"""What passes the bounds, in the engine's own parser (llguidance): no token takes long."""

from __future__ import annotations

import json
import time

import pytest
from llguidance import LLMatcher, LLTokenizer

from rayline.serving.requests.patterns import check_pattern
from rayline.serving.requests.schemas import Schema
from support.asking import LIMITS, crossed

STEP_S = 0.1
"""Longest that one token may hold up everybody's step, on a busy machine."""
START_S = 2.0
TOKENS = 200


def worst_step_s(grammar: str, text: str) -> float:
    """The longest of the steps that the parser takes along a text, up to where it gives up."""
    began_s = time.process_time()
    matcher = LLMatcher(LLTokenizer("byte"), grammar, log_level=0)
    matcher.compute_bitmask()
    assert time.process_time() - began_s < START_S
    worst_s = 0.0
    for token in text.encode():
        began_s = time.process_time()
        matcher.compute_bitmask()
        if not matcher.consume_token(token):
            break
        worst_s = max(worst_s, time.process_time() - began_s)
    return worst_s


@pytest.mark.parametrize(
    "pattern",
    [
        *("(a*)*", "(a+)+", "(a|aa)+", "a*" * 32, "a+" * 32, "(a?){64}a{64}", "(a|b)*a(a|b){200}"),
        *("(a{0,30}){0,30}", "(a{1,31}){1,31}", "(.*a){16}", "((a|aa)*(b|bb)*)*", ".{0,9999}"),
        *("a{0,3000}a{0,3000}a{0,3000}", "(a{100}){100}", "[^a]*" * 32, "(" * 32 + "a" + ")" * 32),
        "|".join(f"a{number}" for number in range(400)),
    ],
)
def test_no_pattern_that_passes_holds_up_a_step(pattern):
    check_pattern(pattern, LIMITS.max_pattern_chars, "regex")
    assert worst_step_s(LLMatcher.grammar_from_regex(pattern), "a" * TOKENS) < STEP_S


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "array", "items": {"type": "integer"}, "maxItems": 10_000},
        {"type": "array", "items": {"type": "array", "items": {}, "maxItems": 10_000}},
        {"type": "string", "minLength": 9_000, "maxLength": 10_000},
        {
            "type": "object",
            "properties": {f"p{number}": {"type": "string"} for number in range(1000)},
        },
        {"enum": [f"value {number}" for number in range(1000)]},
        {"type": "integer", "minimum": -(2**53), "maximum": 2**53},
        {"$defs": {"n": {"items": {"$ref": "#/$defs/n"}}}, "$ref": "#/$defs/n"},
        {"$ref": "#"},
        {"anyOf": [{"$ref": "#"}, {"type": "string"}]},
        crossed(2, 15),
        crossed(9, 1),
    ],
)
def test_no_schema_that_passes_holds_up_a_step(schema):
    Schema(LIMITS, steers=True).check(schema, "schema")
    grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema))
    assert worst_step_s(grammar, "[" + "1," * TOKENS) < STEP_S

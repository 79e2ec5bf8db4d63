"""JSON Schemas that a client sends: of the answer, or of a tool's arguments.

One that steers generation becomes a grammar in the engine, and what it costs there is bounded here;
one of a tool that the model may call as it likes is only shown to the model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from rayline.serving.requests.patterns import check_pattern
from rayline.serving.requests.refusal import Tree, refuse
from rayline.serving.requests.values import too_many, wrong_kind
from rayline.spec import RequestLimits

MAX_ENUM_VALUES = 1000
"""Most values of all enums of a schema together (OpenAI's number)."""
MAX_PROPERTIES = 1000
"""Most properties of all objects of a schema together."""
MAX_COUNT = 10_000
"""Largest bound on items, properties or characters. llguidance (1.7.6) writes items out one by one:
`maxItems` of a thousand million asks for 16 GiB at once, and the engine dies of it."""
MAX_NUMBER = 2**53
"""Largest bound of a number; llguidance makes a pattern of its digits."""
MAX_COMBINATIONS = 1000
"""Most ways to take one alternative of each part of an allOf. llguidance tries them all: 14 by 14
by 14 by 14 took it 13 s."""

_COUNTS = {
    *("minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"),
    *("minContains", "maxContains"),
}
_BOUNDS = {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
_VALUES = {"enum", "const", "default", "examples"}
"""Below these stand values, and no schemas."""
_NAMED = {"properties", "patternProperties", "$defs", "definitions", "dependentSchemas"}
"""Below these stand schemas, by names of the client's own."""
_REFERENCES = ("$ref", "$dynamicRef", "$recursiveRef")


@dataclass(frozen=True, slots=True)
class Schema:
    """A JSON Schema."""

    limits: RequestLimits
    steers: bool
    """Whether generation is held to it."""

    def check(self, value: object, at: str) -> None:
        """As Shape says."""
        if not isinstance(value, dict):
            wrong_kind(value, at, "object")
        _check_size(value, self.limits, at)
        for node in _nodes(value):
            for name in _REFERENCES:
                if not str(node.get(name, "#")).startswith("#"):
                    refuse(
                        f"Invalid '{at}': a reference may only lead to a place in the schema, "
                        "such as '#/$defs/name'.",
                        at,
                        "invalid_schema",
                    )
        if self.steers:
            check_steering(value, self.limits, at)

    def schema(self) -> Tree:
        """As Shape says."""
        return {"type": "object"}


def _check_size(schema: Tree, limits: RequestLimits, at: str) -> None:
    try:
        text = json.dumps(schema, ensure_ascii=False, allow_nan=False)
    except ValueError:
        refuse(f"Invalid '{at}': a number is infinite.", at, "invalid_schema")
    too_many("object", 0, limits.max_schema_bytes, len(text.encode()), at)
    level: list[object] = [schema]
    for _ in range(limits.max_schema_depth):
        level = [inner for outer in level for inner in _inner(outer)]
        if not level:
            return
    most = limits.max_schema_depth
    refuse(f"Invalid '{at}': nested deeper than {most} levels.", at, "invalid_schema")


def _inner(node: object) -> list[object]:
    below = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
    return [inner for inner in below if isinstance(inner, dict | list)]


def _nodes(schema: Tree) -> Iterator[Tree]:
    """Every object in a schema that is a schema."""
    left: list[object] = [schema]
    while left:
        node = left.pop()
        if isinstance(node, list):
            left.extend(node)
        elif isinstance(node, dict):
            yield node
            for name, inner in node.items():
                if name in _NAMED and isinstance(inner, dict):
                    left.extend(inner.values())
                elif name not in _VALUES:
                    left.append(inner)


def check_steering(schema: Tree, limits: RequestLimits, at: str) -> None:
    """Raise RefusedError where a schema would cost the engine too much as a grammar."""
    enum_values = properties = 0
    for node in _nodes(schema):
        enum_values += _length(node.get("enum"))
        properties += _length(node.get("properties"))
        for name, value in node.items():
            number = type(value) in (int, float)
            if number and name in _COUNTS and not 0 <= value <= MAX_COUNT:
                _out_of_bounds(at, name, MAX_COUNT)
            if number and name in _BOUNDS and abs(value) > MAX_NUMBER:
                _out_of_bounds(at, name, MAX_NUMBER)
        if isinstance(node.get("pattern"), str):
            check_pattern(node["pattern"], limits.max_pattern_chars, at)
        if isinstance(node.get("patternProperties"), dict):
            for pattern in node["patternProperties"]:
                check_pattern(pattern, limits.max_pattern_chars, at)
    if _combinations(schema) > MAX_COMBINATIONS:
        refuse(f"Invalid '{at}': too many alternatives within 'allOf'.", at, "invalid_schema")
    too_many("enum", 0, MAX_ENUM_VALUES, enum_values, at)
    too_many("object", 0, MAX_PROPERTIES, properties, at)


def _combinations(schema: Tree) -> int:
    """No fewer than there are, wherever references lead. Beside one other, null is no alternative:
    that is how a field says that it may be left out."""
    alternatives = parts = 1
    for node in _nodes(schema):
        parts += max(0, _length(node.get("allOf")) - 1)
        for name in ("anyOf", "oneOf"):
            listed = node.get(name)
            if isinstance(listed, list):
                real = [one for one in listed if one != {"type": "null"}]
                alternatives += max(0, len(real) - 1)
    # More parts than that are too many with two alternatives already.
    return int(alternatives ** min(parts, 32)) if parts > 1 else 1


def _length(value: object) -> int:
    return len(value) if isinstance(value, dict | list) else 0


def _out_of_bounds(at: str, name: str, most: int) -> None:
    refuse(f"Invalid '{at}': '{name}' may be at most {most}.", at, "invalid_schema")

"""The words in which fields.py says what an array or an object may hold; see values.py."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Never

from rayline.errors import meant
from rayline.serving.requests.refusal import Tree, refuse
from rayline.serving.requests.values import (
    Shape,
    Text,
    below,
    kind_of,
    not_offered,
    too_many,
    wrong_kind,
)

_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,64}", re.ASCII)
"""What may be repeated of a field that nobody knows."""


@dataclass(frozen=True, slots=True)
class ListOf:
    """An array whose items are all of one shape."""

    item: Shape
    most: int
    least: int = 0

    def check(self, value: object, at: str) -> None:
        """As Shape says."""
        if not isinstance(value, list):
            wrong_kind(value, at, "array")
        too_many("array", self.least, self.most, len(value), at)
        for number, item in enumerate(value):
            self.item.check(item, f"{at}[{number}]")

    def schema(self) -> Tree:
        """As Shape says."""
        shown: Tree = {"type": "array", "items": self.item.schema(), "maxItems": self.most}
        if self.least:
            shown["minItems"] = self.least
        return shown


@dataclass(frozen=True, slots=True)
class MapOf:
    """An object whose names are a client's own and whose values are all of one shape."""

    name: Text
    value: Shape
    most: int

    def check(self, value: object, at: str) -> None:
        """As Shape says."""
        if not isinstance(value, dict):
            wrong_kind(value, at, "object")
        too_many("object", 0, self.most, len(value), at)
        for name, inner in value.items():
            self.name.check(name, at)
            self.value.check(inner, at)

    def schema(self) -> Tree:
        """As Shape says."""
        return {
            "type": "object",
            "propertyNames": self.name.schema(),
            "additionalProperties": self.value.schema(),
            "maxProperties": self.most,
        }


@dataclass(frozen=True, slots=True)
class Fields:
    """An object with named fields, and no others. A field that is not required may be null."""

    shapes: Mapping[str, Shape]
    required: tuple[str, ...] = ()
    withheld: Mapping[str, str] = field(default_factory=dict)
    """Fields that are known, yet no client's to set: why."""

    def check(self, value: object, at: str) -> None:
        """As Shape says."""
        if not isinstance(value, dict):
            wrong_kind(value, at, "object")
        for name, inner in value.items():
            shape = self.shapes.get(name)
            if shape is None:
                self._unknown(name, at)
            elif inner is not None or name in self.required:
                shape.check(inner, below(at, name))
        for name in self.required:
            if name not in value:
                path = below(at, name)
                refuse(f"Missing required parameter: '{path}'.", path, "missing_required_parameter")

    def _unknown(self, name: str, at: str) -> Never:
        if not _NAME.fullmatch(name):
            refuse("Unknown parameter, whose name is not one.", at or None, "unknown_parameter")
        why = self.withheld.get(name)
        guess = meant(name, self.shapes, otherwise="", cutoff=0.6)
        hint = why or guess[:1].upper() + guess[1:]
        path = below(at, name)
        refuse(f"Unknown parameter: '{path}'. {hint}".rstrip(), path, "unknown_parameter")

    def schema(self) -> Tree:
        """As Shape says."""
        return {
            "type": "object",
            "properties": {
                name: shape.schema() if name in self.required else _or_null(shape.schema())
                for name, shape in self.shapes.items()
            },
            "required": list(self.required),
            "additionalProperties": False,
        }


def _or_null(schema: Tree) -> Tree:
    return {"anyOf": [schema, {"type": "null"}]}


@dataclass(frozen=True, slots=True)
class Either:
    """One of several shapes, told apart by the JSON type of the value."""

    shapes: Mapping[str, Shape]
    """By JSON type: string, array, object..."""

    def check(self, value: object, at: str) -> None:
        """As Shape says."""
        shape = self.shapes.get(kind_of(value))
        if shape is None:
            wrong_kind(value, at, *self.shapes)
        shape.check(value, at)

    def schema(self) -> Tree:
        """As Shape says."""
        return {"anyOf": [shape.schema() for shape in self.shapes.values()]}


@dataclass(frozen=True, slots=True)
class ByFirst:
    """An array of one of several kinds, told apart by the JSON type of its first item."""

    shapes: Mapping[str, Shape]
    """By the JSON type of an item: what the whole array is."""

    def check(self, value: object, at: str) -> None:
        """As Shape says."""
        if not isinstance(value, list):
            wrong_kind(value, at, "array")
        too_many("array", 1, len(value), len(value), at)
        shape = self.shapes.get(kind_of(value[0]))
        if shape is None:
            wrong_kind(value[0], f"{at}[0]", *self.shapes)
        shape.check(value, at)

    def schema(self) -> Tree:
        """As Shape says."""
        return {"anyOf": [shape.schema() for shape in self.shapes.values()]}


@dataclass(frozen=True, slots=True)
class Tagged:
    """One of several objects, told apart by a word that each holds."""

    tag: str
    shapes: Mapping[str, Fields]
    """By that word. Each of them has the field, too."""
    otherwise: str = ""
    """Said of any other word."""
    default: str | None = None
    """The word of an object that holds none."""

    def check(self, value: object, at: str) -> None:
        """As Shape says."""
        if not isinstance(value, dict):
            wrong_kind(value, at, "object")
        path = below(at, self.tag)
        word = value.get(self.tag, self.default)
        if self.tag not in value and word is None:
            refuse(f"Missing required parameter: '{path}'.", path, "missing_required_parameter")
        if not isinstance(word, str):
            wrong_kind(word, path, "string")
        if word not in self.shapes:
            if self.otherwise:
                refuse(f"Invalid value for '{path}'. {self.otherwise}", path, "invalid_value")
            not_offered(path, tuple(self.shapes))
        self.shapes[word].check(value, at)

    def schema(self) -> Tree:
        """As Shape says."""
        return {"oneOf": [shape.schema() for shape in self.shapes.values()]}

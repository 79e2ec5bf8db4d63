"""The words in which fields.py says what a value may be: numbers, texts, flags.

Each word here and in shapes.py does two things: it checks a piece of JSON, and it tells the JSON
Schema of what it lets through, so that what is served and what is documented cannot differ.
Messages and codes are OpenAI's; none repeats text that a client sent, which may be a prompt.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Never, Protocol

from rayline.serving.requests.refusal import Tree, refuse

_KINDS = {
    str: "string",
    bool: "boolean",
    int: "integer",
    float: "number",
    list: "array",
    dict: "object",
    type(None): "null",
}
_WITH_ARTICLE = {
    "string": "a string",
    "boolean": "a boolean",
    "integer": "an integer",
    "number": "a number",
    "array": "an array",
    "object": "an object",
    "null": "null",
}


class Shape(Protocol):
    """What a piece of JSON may be."""

    def check(self, value: object, at: str) -> None:
        """Raise RefusedError where `value`, which stands at the path `at`, is not of this shape."""
        ...

    def schema(self) -> Tree:
        """The same as a JSON Schema (2020-12)."""
        ...


def kind_of(value: object) -> str:
    """What JSON calls a value."""
    return _KINDS[type(value)]


def wrong_kind(value: object, at: str, *wanted: str) -> Never:
    """Refuse a value that is of another JSON type than those wanted."""
    words = " or ".join(_WITH_ARTICLE[kind] for kind in wanted)
    expected = f"one of {words}" if len(wanted) > 1 else words
    got = _WITH_ARTICLE[kind_of(value)]
    refuse(f"Invalid type for '{at}': expected {expected}, but got {got}.", at, "invalid_type")


def too_many(what: str, least: int, most: int, found: int, at: str) -> None:
    """Refuse a length outside its bounds. `what` is string, array or object."""
    if found > most:
        refuse(
            f"Invalid '{at}': {what} too long. Expected at most {most}, but got {found}.",
            at,
            f"{what}_above_max_length",
        )
    if found < least:
        code = f"empty_{what}" if found == 0 else f"{what}_below_min_length"
        refuse(
            f"Invalid '{at}': {what} too short. Expected at least {least}, but got {found}.",
            at,
            code,
        )


def below(at: str, name: str) -> str:
    """The path of a field of the object at `at`."""
    return f"{at}.{name}" if at else name


@dataclass(frozen=True, slots=True)
class Flag:
    """true or false."""

    only: bool | None = None
    """The one that is let through, where the other is not offered."""

    def check(self, value: object, at: str) -> None:
        """As Shape says."""
        if not isinstance(value, bool):
            wrong_kind(value, at, "boolean")
        if self.only is not None and value is not self.only:
            refuse(
                f"Unsupported value: '{at}' may only be {str(self.only).lower()} here.",
                at,
                "unsupported_value",
            )

    def schema(self) -> Tree:
        """As Shape says."""
        return {"type": "boolean"} if self.only is None else {"const": self.only}


@dataclass(frozen=True, slots=True)
class Whole:
    """An integer between two bounds, both included."""

    low: int
    high: int

    def check(self, value: object, at: str) -> None:
        """As Shape says."""
        if not isinstance(value, int) or isinstance(value, bool):
            wrong_kind(value, at, "integer")
        _within(value, self.low, self.high, at, "integer")

    def schema(self) -> Tree:
        """As Shape says."""
        return {"type": "integer", "minimum": self.low, "maximum": self.high}


@dataclass(frozen=True, slots=True)
class Number:
    """A number between two bounds, both included."""

    low: float
    high: float
    above_low: bool = False
    """Leaves the lower bound itself out."""

    def check(self, value: object, at: str) -> None:
        """As Shape says."""
        if not isinstance(value, int | float) or isinstance(value, bool):
            wrong_kind(value, at, "number")
        if self.above_low and value == self.low:
            refuse(f"Invalid '{at}': expected a value > {self.low}.", at, "decimal_below_min_value")
        # What overflowed to infinity is above every bound.
        _within(value, self.low, self.high, at, "decimal")

    def schema(self) -> Tree:
        """As Shape says."""
        lowest = "exclusiveMinimum" if self.above_low else "minimum"
        return {"type": "number", lowest: self.low, "maximum": self.high}


def _within(value: float, low: float, high: float, at: str, what: str) -> None:
    if value > high:
        refuse(
            f"Invalid '{at}': {what} above maximum value. Expected a value <= {high}.",
            at,
            f"{what}_above_max_value",
        )
    if value < low:
        refuse(
            f"Invalid '{at}': {what} below minimum value. Expected a value >= {low}.",
            at,
            f"{what}_below_min_value",
        )


@dataclass(frozen=True, slots=True)
class Text:
    """A string, by its length in characters."""

    most: int
    least: int = 0
    pattern: str | None = None
    """A regular expression that the whole of it must match."""

    def check(self, value: object, at: str) -> None:
        """As Shape says."""
        if not isinstance(value, str):
            wrong_kind(value, at, "string")
        too_many("string", self.least, self.most, len(value), at)
        if self.pattern is not None and not re.fullmatch(self.pattern, value):
            refuse(
                f"Invalid '{at}': string does not match pattern. Expected a string that matches "
                f"the pattern '^{self.pattern}$'.",
                at,
                "invalid_value",
            )

    def schema(self) -> Tree:
        """As Shape says."""
        shown: Tree = {"type": "string", "maxLength": self.most}
        if self.least:
            shown["minLength"] = self.least
        if self.pattern is not None:
            shown["pattern"] = f"^{self.pattern}$"
        return shown


@dataclass(frozen=True, slots=True)
class Word:
    """One string out of a few."""

    allowed: tuple[str, ...]

    def check(self, value: object, at: str) -> None:
        """As Shape says."""
        if not isinstance(value, str):
            wrong_kind(value, at, "string")
        if value not in self.allowed:
            not_offered(at, self.allowed)

    def schema(self) -> Tree:
        """As Shape says."""
        return {"enum": list(self.allowed)}


def not_offered(at: str, allowed: tuple[str, ...]) -> Never:
    """Refuse a word that is none of a few."""
    words = ", ".join(f"'{word}'" for word in allowed)
    refuse(f"Invalid value for '{at}'. Supported values are: {words}.", at, "invalid_value")


@dataclass(frozen=True, slots=True)
class Nothing:
    """null, or nothing in a list: what a client hands back of an answer that had none of it."""

    def check(self, value: object, at: str) -> None:
        """As Shape says."""
        if value not in (None, []):
            refuse(f"Unsupported value: '{at}' must be empty.", at, "unsupported_value")

    def schema(self) -> Tree:
        """As Shape says."""
        return {"type": ["null", "array"], "maxItems": 0}


@dataclass(frozen=True, slots=True)
class TokenIds:
    """An array of token ids; there may be a hundred thousand of them."""

    high: int
    most: int
    least: int = 1

    def check(self, value: object, at: str) -> None:
        """As Shape says."""
        if not isinstance(value, list):
            wrong_kind(value, at, "array")
        too_many("array", self.least, self.most, len(value), at)
        if not value:
            return
        for number, token in enumerate(value):
            if type(token) is not int:
                wrong_kind(token, f"{at}[{number}]", "integer")
        if min(value) < 0 or max(value) > self.high:
            refuse(
                f"Invalid '{at}': a token id lies between 0 and {self.high}.", at, "invalid_value"
            )

    def schema(self) -> Tree:
        """As Shape says."""
        ids = {"type": "integer", "minimum": 0, "maximum": self.high}
        return {"type": "array", "items": ids, "minItems": self.least, "maxItems": self.most}

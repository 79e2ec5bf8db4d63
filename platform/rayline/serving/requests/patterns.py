"""What a regular expression would cost the engine, told before the engine sees it.

A pattern steers generation: for every token the engine's scheduler asks a parser which tokens may
follow, and everyone's step waits for the answer. Measured on one core, 200 characters in:

    pattern                        llguidance 1.7.6    xgrammar 0.2.8
    (a*)*                          under 0.1 ms        1.5 ms a token
    ((a*)*)*                       under 0.1 ms        90 ms
    a* 32 times                    under 0.1 ms        110 ms
    ((a{0,20}){0,20}){0,20}        6 ms, then ended    690 ms
    (a{1000}){1000}                1.4 s at once       none

llguidance holds an account and ends a request that overdraws it, so it is the one to take
(engine.structured_outputs: guidance). The bounds here are for what both would choke on; xgrammar
keeps every way to read a text, and is still held up for a tenth of a second by the worst of what
passes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from rayline.serving.requests.refusal import Tree, refuse
from rayline.serving.requests.values import too_many, wrong_kind

MAX_LOOPS = 32
"""Most repetitions of no fixed number, those within a counted one counted as often."""
MAX_LOOP_DEPTH = 2
"""Deepest nesting of such repetitions."""
MAX_GROUP_DEPTH = 32
"""Deepest nesting of groups."""
MAX_POSITIONS = 10_000
"""Most characters of a pattern with its counted repetitions written out."""

_COUNTED = re.compile(r"\{(\d{1,6})(,?)(\d{0,6})\}", re.ASCII)
_ESCAPE = re.compile(
    r"\\(?:[pP]\{\w{1,32}\}|u\{[0-9a-fA-F]{1,6}\}|u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|[^0-9k\n])"
)
_CLASS = re.compile(r"\[(?:[^\]\\]|\\.)*\]", re.DOTALL)


@dataclass(frozen=True, slots=True)
class PatternCost:
    """How large the automaton of a pattern becomes."""

    positions: int = 0
    """Characters, with counted repetitions written out."""
    loops: int = 0
    """Repetitions of no fixed number, written out likewise."""
    loop_depth: int = 0
    """Deepest nesting of them."""

    def beside(self, other: PatternCost) -> PatternCost:
        """Of both, one after the other or one instead of the other."""
        return PatternCost(
            self.positions + other.positions,
            self.loops + other.loops,
            max(self.loop_depth, other.loop_depth),
        )

    def times(self, count: int) -> PatternCost:
        """Written out `count` times."""
        return PatternCost(self.positions * count, self.loops * count, self.loop_depth)

    def looped(self) -> PatternCost:
        """Repeated as often as the text has it."""
        return PatternCost(self.positions, self.loops + 1, self.loop_depth + 1)


class PatternError(ValueError):
    """Says why a pattern is not served."""


def pattern_cost(pattern: str) -> PatternCost:
    """What a pattern costs. Raises PatternError for one that is malformed, looks around or refers
    back: the engine's parser can do neither."""
    cost, end = _sequence(pattern, 0, 0)
    if end < len(pattern):
        raise PatternError("a group ends that has not begun")
    return cost


def _sequence(pattern: str, place: int, depth: int) -> tuple[PatternCost, int]:
    """The cost from `place` to the end of the group that it lies in, and where that is."""
    if depth > MAX_GROUP_DEPTH:
        raise PatternError(f"groups are nested deeper than {MAX_GROUP_DEPTH}")
    total = PatternCost()
    while place < len(pattern) and pattern[place] != ")":
        if pattern[place] == "|":
            place += 1
            continue
        cost, place = _atom(pattern, place, depth)
        while place < len(pattern) and pattern[place] in "*+?{":
            cost, place = _repeated(cost, pattern, place)
        total = total.beside(cost)
    return total, place


def _atom(pattern: str, place: int, depth: int) -> tuple[PatternCost, int]:
    char = pattern[place]
    if char == "(":
        plain = pattern.startswith("(?:", place)
        if not plain and pattern.startswith("(?", place):
            raise PatternError("of the groups that begin with (? only (?:...) is served")
        cost, end = _sequence(pattern, place + (3 if plain else 1), depth + 1)
        if end == len(pattern):
            raise PatternError("a group does not end")
        return cost, end + 1
    if char in "*+?{":
        raise PatternError("a repetition has nothing to repeat; a brace is written \\{")
    if char not in "\\[":
        return PatternCost(positions=1), place + 1
    found = (_ESCAPE if char == "\\" else _CLASS).match(pattern, place)
    if found is None:
        raise PatternError("an escape or a class is malformed, or refers back to a group")
    return PatternCost(positions=1), found.end()


def _repeated(cost: PatternCost, pattern: str, place: int) -> tuple[PatternCost, int]:
    char = pattern[place]
    if char != "{":
        return cost if char == "?" else cost.looped(), place + 1
    counted = _COUNTED.match(pattern, place)
    if counted is None:
        raise PatternError("a count is malformed; a brace is written \\{")
    least, comma, most = int(counted[1]), counted[2], counted[3]
    if comma and not most:
        return cost.times(max(1, least)).looped(), counted.end()
    if int(most or least) < least:
        raise PatternError("a count ends below where it begins")
    written_out = cost.times(int(most or least))
    return written_out.looped() if most else written_out, counted.end()


def check_pattern(pattern: object, most_chars: int, at: str) -> None:
    """Raise RefusedError where a regular expression is malformed or would cost too much."""
    if not isinstance(pattern, str):
        wrong_kind(pattern, at, "string")
    too_many("string", 0, most_chars, len(pattern), at)
    if "\x00" in pattern:
        refuse(f"Invalid '{at}': a pattern holds no NUL.", at, "invalid_value")
    try:
        cost = pattern_cost(pattern)
    except PatternError as wrong:
        refuse(f"Invalid '{at}': {wrong}.", at, "invalid_value")
    for what, found, most in (
        ("characters, with repetitions written out", cost.positions, MAX_POSITIONS),
        ("repetitions of no fixed number", cost.loops, MAX_LOOPS),
        ("such repetitions within one another", cost.loop_depth, MAX_LOOP_DEPTH),
    ):
        if found > most:
            too_much = f"too complex. Expected at most {most} {what}, but got {found} instead."
            refuse(f"Invalid '{at}': {too_much}", at, "pattern_too_complex")


@dataclass(frozen=True, slots=True)
class Pattern:
    """A regular expression that an answer must match."""

    most: int
    """Characters."""

    def check(self, value: object, at: str) -> None:
        """As Shape says."""
        check_pattern(value, self.most, at)

    def schema(self) -> Tree:
        """As Shape says."""
        return {"type": "string", "maxLength": self.most}

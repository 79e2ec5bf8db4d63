"""From the bytes of a body to a JSON tree that any other reader would read alike."""

from __future__ import annotations

import json
import re
from typing import Never

from rayline.serving.requests.refusal import Refusal, RefusedError, Tree, refuse
from rayline.spec import RequestLimits

MAX_CONTAINERS = 50_000
"""Most arrays and objects of a body. A million of them are read in half a second, most of it spent
by Python's collector; the longest conversation of agents has a few thousand."""
MAX_DIGITS = 4300
"""Where Python stops reading an integer (sys.int_info.default_max_str_digits)."""

_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"')
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
"""An escape that stands for half a character."""


class _TwiceError(ValueError):
    """An object holds the same name twice."""


def check_content_type(content_type: str | None) -> None:
    """Raise RefusedError where a body is said to be other than JSON. Called by the gateway.

    A browser sends other types to anybody's address without asking first, and then a page could
    keep busy an endpoint that only its own machine can reach.
    """
    if content_type is None:
        return
    kind, _, parameters = content_type.lower().partition(";")
    charset = re.search(r"charset=\s*\"?([^\s;\"]*)", parameters)
    if kind.strip() != "application/json" or (charset and charset[1] not in ("utf-8", "utf8")):
        what = "The Content-Type must be application/json, in UTF-8."
        raise RefusedError(Refusal(415, what, code="unsupported_media_type"))


def read_json(body: bytes, limits: RequestLimits) -> Tree:
    """The object that a body holds. Raises RefusedError.

    Stricter than JSON readers are: of a name given twice some take the first and some the last,
    NaN and Infinity are no JSON, and half a character cannot be written as UTF-8 again.
    """
    if len(body) > limits.max_body_bytes:
        what = f"The body is larger than {limits.max_body_bytes} bytes."
        raise RefusedError(Refusal(413, what, code="body_too_large"))
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        _not_json("it is not UTF-8 text")
    if _containers(text, MAX_CONTAINERS) > MAX_CONTAINERS:
        _not_json(f"it holds more than {MAX_CONTAINERS} arrays and objects")
    tree = _parsed(text)
    if _SURROGATE.search(text):
        try:
            json.dumps(tree, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            _not_json("a string holds half of a surrogate pair")
    if not isinstance(tree, dict):
        _not_json("it must be an object")
    if _containers(text, limits.max_json_depth) > limits.max_json_depth:
        check_depth(tree, limits.max_json_depth)
    return tree


def _parsed(text: str) -> object:
    try:
        return json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)
    except _TwiceError:
        _not_json("an object holds the same name twice")
    except json.JSONDecodeError as wrong:
        _not_json(f"{wrong.msg} at character {wrong.pos}")
    except ValueError:
        _not_json(f"it holds NaN, Infinity, or an integer of more than {MAX_DIGITS} digits")
    except RecursionError:
        _not_json("it is nested too deeply")


def _containers(text: str, enough: int) -> int:
    """How many arrays and objects begin in a JSON text, where it may be more than `enough`."""
    begun = text.count("[") + text.count("{")
    if begun > enough:
        without_strings = _STRING.sub("", text)
        begun = without_strings.count("[") + without_strings.count("{")
    return begun


def check_depth(tree: Tree | list[object], most: int) -> None:
    """Raise RefusedError where arrays and objects are nested deeper than `most`."""
    level: list[Tree | list[object]] = [tree]
    for _ in range(most):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    _not_json(f"it is nested deeper than {most} levels")


def check_encoded(text: str, most: int, at: str) -> None:
    """Raise RefusedError where a string that holds JSON would hurt who reads it.

    Of a tool call's arguments a model may have made anything, and the engine puts up with what is
    no JSON; but what it can read it reads without a bound.
    """
    containers = _containers(text, most)
    if containers <= most and len(text) <= MAX_DIGITS and not _SURROGATE.search(text):
        return
    try:
        if containers > MAX_CONTAINERS:
            raise RecursionError
        tree = json.loads(text)
        check_depth([tree], most + 1)
        json.dumps(tree, ensure_ascii=False).encode("utf-8")
    except json.JSONDecodeError:
        return
    except (ValueError, RecursionError, RefusedError):
        refuse(
            f"Invalid '{at}': nested too deeply, or it holds a number that is too long or half of "
            "a surrogate pair.",
            at,
            "invalid_value",
        )


def _once(pairs: list[tuple[str, object]]) -> Tree:
    tree = dict(pairs)
    if len(tree) < len(pairs):
        raise _TwiceError
    return tree


def _no_constant(name: str) -> Never:
    raise ValueError(name)


def _not_json(why: str) -> Never:
    refuse(f"The body is not valid JSON: {why}.", None, "invalid_json")

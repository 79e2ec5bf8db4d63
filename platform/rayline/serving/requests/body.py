"""From the bytes of a body to a JSON tree that any other reader would read alike."""

from __future__ import annotations

import json
import re
from typing import Never

from rayline.serving.requests.refusal import Refusal, RefusedError, Tree, refuse
from rayline.spec import RequestLimits

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
"""An escape that stands for half a character."""


class _TwiceError(ValueError):
    """An object holds the same name twice."""


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
    tree = _parsed(text)
    if _SURROGATE.search(text):
        try:
            json.dumps(tree, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError:
            _not_json("a string holds half of a surrogate pair")
    if not isinstance(tree, dict):
        _not_json("it must be an object")
    if text.count("[") + text.count("{") > limits.max_json_depth:
        check_depth(tree, limits.max_json_depth)
    return tree


def _parsed(text: str) -> object:
    try:
        return json.loads(text, object_pairs_hook=_once, parse_constant=_no_constant)
    except _TwiceError:
        _not_json("an object holds the same name twice")
    except json.JSONDecodeError as wrong:
        _not_json(f"{wrong.msg} at character {wrong.pos}")
    # Python stops reading integers at 4300 digits.
    except ValueError:
        _not_json("it holds NaN, Infinity, or an integer of thousands of digits")
    except RecursionError:
        _not_json("it is nested too deeply")


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

    Of a tool call's arguments a model may have made anything, and the engine puts up with that; but
    it reads them without a bound on depth.
    """
    if text.count("[") + text.count("{") <= most and len(text) < 4300:
        return
    try:
        check_depth([json.loads(text)], most + 1)
    except json.JSONDecodeError:
        return
    except (ValueError, RecursionError, RefusedError):
        refuse(f"Invalid '{at}': nested too deeply, or a number is too long.", at, "invalid_value")


def _once(pairs: list[tuple[str, object]]) -> Tree:
    tree = dict(pairs)
    if len(tree) < len(pairs):
        raise _TwiceError
    return tree


def _no_constant(name: str) -> Never:
    raise ValueError(name)


def _not_json(why: str) -> Never:
    refuse(f"The body is not valid JSON: {why}.", None, "invalid_json")

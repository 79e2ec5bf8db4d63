"""Command lines that typer refuses, in this project's words: what is wrong, what could stand there,
and what to write instead."""

from __future__ import annotations

import re
from typing import Any

import typer

from rayline.errors import SpecError, meant

_NO_COMMAND = re.compile(r"No such command '(.+?)'")
_INVALID = re.compile(r"^Invalid value for (.+?): (.*)$", re.DOTALL)
_MISSING = re.compile(r"^Missing (\w+) (.+?)\.", re.DOTALL)
_NOT_ONE_OF = re.compile(r"^Value error, '.*?' is not one of (.*)$", re.DOTALL)


def usage_error(error: typer.TyperException) -> SpecError:
    """What `error` says, as an error of our own."""
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "rayline"
    message = error.format_message()
    option = getattr(error, "option_name", None)
    if option is not None and message.startswith("No such option"):
        return _unknown_option(path, option, context)
    found = _NO_COMMAND.search(message)
    if found is not None and context is not None:
        known = sorted(getattr(context.command, "commands", {}))
        return SpecError(
            path,
            "no such command",
            value=found[1],
            allowed=", ".join(known),
            fix=meant(found[1], known, otherwise=f"{path} --help"),
        )
    missing = _MISSING.match(message)
    if missing is not None:
        what = f"{missing[2]} is missing".replace("'", "")
        return SpecError(path, what, fix=_example(context) or f"{path} --help")
    invalid = _INVALID.match(message)
    if invalid is not None:
        return _invalid(path, invalid[1].strip("'"), invalid[2], error.__cause__)
    return SpecError(path, message, fix=f"{path} --help")


def _unknown_option(path: str, option: str, context: Any) -> SpecError:
    parameters = context.command.params if context is not None else []
    known = sorted({name for each in parameters for name in each.opts if name.startswith("--")})
    return SpecError(
        path,
        "no such option",
        value=option,
        allowed=", ".join([*known, "--help"]),
        # Of one letter nothing can be guessed.
        fix=meant(option, known if option.startswith("--") else [], otherwise=f"{path} --help"),
    )


def _invalid(path: str, where: str, why: str, cause: BaseException | None) -> SpecError:
    """A value that an option does not take; `cause` is pydantic's finding, where it found it."""
    fix = f"{path} --help"
    if not isinstance(cause, ValueError) or not hasattr(cause, "errors"):
        return SpecError(where, why.rstrip("."), fix=fix)
    found = cause.errors()[0]
    choices = _NOT_ONE_OF.match(found["msg"])
    if choices is None:
        told = found["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
        return SpecError(where, f"should be {told}", value=found["input"], fix=fix)
    names = [name.strip(" '.") for name in choices[1].split(",")]
    return SpecError(
        where,
        "no such choice",
        value=found["input"],
        allowed=", ".join(names),
        fix=meant(str(found["input"]), names, otherwise=fix),
    )


def _example(context: Any) -> str:
    """The example that the command's help ends with."""
    epilog = getattr(getattr(context, "command", None), "epilog", None) or ""
    return str(epilog).partition("Example: ")[2].partition("\n")[0].strip()

"""What the command line itself makes of a line that somebody is told to type."""

from __future__ import annotations

import shlex
from functools import cache
from typing import Any

from typer.main import get_command

from rayline.cli.app import app


@cache
def _tree() -> Any:
    return get_command(app)


def parsed(line: str) -> tuple[str, dict[str, Any]]:
    """The verb and the parameters of `rayline ...`; raises what a person would be shown."""
    program, *words = shlex.split(line)
    assert program == "rayline"
    command = _tree()
    verb: list[str] = []
    while words and words[0] in getattr(command, "commands", {}):
        verb.append(words[0])
        command = command.commands[words.pop(0)]
    assert verb, f"no verb in {line}"
    context = command.make_context(verb[-1], words)
    return " ".join(verb), context.params

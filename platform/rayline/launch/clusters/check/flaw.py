"""What is wrong at one place of a cluster file, and small ways to look into a tree that may be
anything: a broken file is what the checks are for, so none of them may stumble over one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rayline.errors import meant

Tree = Mapping[str, Any]
NEAR = 0.6
"""Least likeness of a key that was probably meant: what stands in such files is mostly right."""


@dataclass(frozen=True, slots=True)
class Flaw:
    """One finding."""

    kind: str
    """Short name of this kind of mistake, the same in every file."""
    field: str
    """Dotted place in the file."""
    problem: str
    """What is wrong, and what would come of it."""
    fix: str
    """What to write instead."""
    value: str = ""
    """What stands there; empty where nothing does."""
    allowed: str = ""
    """What could."""

    @property
    def text(self) -> str:
        """In the form of rayline's errors."""
        found = f" (found {self.value})" if self.value else ""
        lines = [f"{self.field}: {self.problem}{found}"]
        if self.allowed:
            lines.append(f"  allowed: {self.allowed}")
        return "\n".join([*lines, f"  to do:   {self.fix}"])


def mapping(value: object) -> Tree:
    """The value where it is a mapping, else an empty one."""
    return value if isinstance(value, Mapping) else {}


def sequence(value: object) -> list[Any]:
    """The value where it is a list, else an empty one."""
    return value if isinstance(value, list) else []


def whole(value: object) -> int | None:
    """The value where it is a whole number (and no yes or no)."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def unknown_key(field: str, key: str, known: Iterable[str]) -> Flaw:
    """A key that nobody reads."""
    names = sorted(known)
    return Flaw(
        "unknown-key",
        f"{field}.{key}" if field else key,
        "nothing reads this key",
        meant(key, names, otherwise="remove it", cutoff=NEAR),
        allowed=", ".join(names),
    )

"""What is wrong at one place of a cluster file, and small ways to look into a tree that may be
anything: a broken file is what the checks are for, so none of them may stumble over one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Tree = Mapping[str, Any]
_NEAR = 0.6


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


def nearest(word: str, known: Iterable[str], cutoff: float = _NEAR) -> str | None:
    """The known word that was probably meant."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)), None)


def unknown_key(field: str, key: str, known: Iterable[str]) -> Flaw:
    """A key that nobody reads."""
    names = sorted(known)
    near = nearest(key, names)
    return Flaw(
        "unknown-key",
        f"{field}.{key}" if field else key,
        "nothing reads this key",
        f"did you mean {near!r}?" if near else "remove it",
        allowed=", ".join(names),
    )

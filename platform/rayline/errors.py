"""The one error tree. Every message names the field or resource, its value, what is allowed and
what to do; every error survives pickling, so it reaches the driver from a Ray worker unchanged.

A door (the command line, a job script) prints `str(error)` without a traceback and exits with
`error.exit_code`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import ClassVar

_ABSENT = object()


class RaylineError(Exception):
    """What went wrong, where, and how to mend it.

    `subject` is the dotted spec field, file or resource; `problem` says what is wrong with it;
    `value` is what was found there; `allowed` what could stand there; `fix` the thing to do,
    best a command. Only `subject` and `problem` are required.
    """

    exit_code: ClassVar[int] = 1

    def __init__(
        self,
        subject: str,
        problem: str,
        *,
        value: object = _ABSENT,
        allowed: str = "",
        fix: str = "",
    ) -> None:
        super().__init__(subject, problem)
        self.subject = subject
        self.problem = problem
        self.value = None if value is _ABSENT else repr(value)
        self.allowed = allowed
        self.fix = fix

    def __str__(self) -> str:
        found = "" if self.value is None else f" (found {self.value})"
        lines = [f"{self.subject}: {self.problem}{found}"]
        if self.allowed:
            lines.append(f"  allowed: {self.allowed}")
        if self.fix:
            lines.append(f"  to do:   {self.fix}")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, object]:
        """The error as plain values, for `--json`."""
        return {
            "error": type(self).__name__,
            "subject": self.subject,
            "problem": self.problem,
            "value": self.value,
            "allowed": self.allowed,
            "fix": self.fix,
            "exit_code": self.exit_code,
        }

    def __reduce__(self) -> tuple[Callable[..., RaylineError], tuple[object, ...]]:
        state = (self.subject, self.problem, self.value, self.allowed, self.fix)
        return _rebuild, (type(self), *state, self._extra())

    def _extra(self) -> dict[str, object]:
        """Further attributes of a subclass that must survive pickling."""
        return {}


def _rebuild(
    kind: type[RaylineError],
    subject: str,
    problem: str,
    value: str | None,
    allowed: str,
    fix: str,
    extra: dict[str, object],
) -> RaylineError:
    error = kind(subject, problem, allowed=allowed, fix=fix)
    error.value = value
    for name, content in extra.items():
        setattr(error, name, content)
    return error


class SpecError(RaylineError):
    """The user's spec, data or model cannot work as written."""

    exit_code = 2


class PlacementError(RaylineError):
    """The cluster cannot hold what was asked, or did not within the time limit."""

    exit_code = 3


class WorkerError(RaylineError):
    """A worker died or raised; `rank` says which and `remote_traceback` what it printed."""

    exit_code = 4
    rank: int | None = None
    remote_traceback: str = ""

    def _extra(self) -> dict[str, object]:
        return {"rank": self.rank, "remote_traceback": self.remote_traceback}


class CheckpointError(RaylineError):
    """A checkpoint or an exported model is missing, torn, corrupt or of another model."""

    exit_code = 5


class ServingError(RaylineError):
    """A deployment could not be brought up or reached."""

    exit_code = 6


class InterruptedByUser(RaylineError):
    """Ctrl-C: everything that was started has been ended."""

    exit_code = 130


def nearest(word: str, known: Iterable[str], cutoff: float = 0.5) -> str | None:
    """The known word that was probably meant, whatever its case; None where none is near enough.
    `cutoff` is the least likeness, 0 to 1, by difflib's measure."""
    # A tenth of the time that `rayline --help` takes, and needed only where something is wrong.
    import difflib

    by_folded = {each.casefold(): each for each in known}
    found = difflib.get_close_matches(word.casefold(), by_folded, n=1, cutoff=cutoff)
    return by_folded[found[0]] if found else None


def meant(word: str, known: Iterable[str], *, otherwise: str, cutoff: float = 0.5) -> str:
    """What to do about a word that is not among those known: take the nearest, else `otherwise`.
    Every `fix` that guesses is made here."""
    near = nearest(word, known, cutoff)
    return otherwise if near is None else f"did you mean {near!r}?"


@contextmanager
def needing(extra: str) -> Iterator[None]:
    """Turn a package that is not installed into the name of the extra that brings it."""
    try:
        yield
    except ModuleNotFoundError as missing:
        if missing.name is None or missing.name.startswith("rayline"):
            raise
        raise RaylineError(
            "environment",
            f"the package {missing.name} is not installed",
            fix=f"pip install 'rayline[{extra}]'",
        ) from missing

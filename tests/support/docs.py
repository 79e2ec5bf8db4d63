"""The example of a docstring, run as it stands."""

from __future__ import annotations

import doctest
import inspect
from collections.abc import Callable
from typing import Any


class _LastWords(doctest.OutputChecker):
    """What is shown has to end as it should; what libraries print before is theirs."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        lines = got.splitlines(keepends=True)
        return any(
            super(_LastWords, self).check_output(want, "".join(lines[start:]), optionflags)
            for start in range(len(lines) + 1)
        )


_FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
_PARSER = doctest.DocTestParser()


def example_of(documented: Callable[..., Any], names: dict[str, Any]) -> doctest.DocTest:
    """The example in a docstring, with the names that it may use."""
    text = inspect.getdoc(documented) or ""
    return _PARSER.get_doctest(text, names, documented.__qualname__, None, None)


def run_example(documented: Callable[..., Any], names: dict[str, Any]) -> None:
    """Run it; what it assigns is put into `names`, for the next one. Fails with doctest's own
    words where there is none, or where it shows something else."""
    example = example_of(documented, names)
    assert example.examples, f"{documented.__qualname__} has no example"
    said: list[str] = []
    runner = doctest.DocTestRunner(_LastWords(), verbose=False, optionflags=_FLAGS)
    result = runner.run(example, out=said.append, clear_globs=False)
    assert result.failed == 0, "".join(said)
    names.update({name: value for name, value in example.globs.items() if name != "__builtins__"})

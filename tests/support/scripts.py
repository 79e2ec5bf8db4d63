"""A script of examples/ as a module of its own, so that several can share one Ray."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def main_of(name: str) -> Callable[[list[str]], int]:
    """`main` of examples/NAME.py, which takes the words behind the script's name."""
    found = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module
    found.loader.exec_module(module)
    main: Callable[[list[str]], int] = module.main
    return main

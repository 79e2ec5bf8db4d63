"""Imports of torch and what comes with it: some seconds of work for every process."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def lasting_imports() -> Iterator[None]:
    """Around imports. What is imported stays, and is not looked through for garbage: meanwhile that
    takes a fifth of the time, after a loss as long as all the rest of a recovery, and in a process
    that forks it would copy what its children share."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()

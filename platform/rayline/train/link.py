"""Link: how one rank tells what it does, and is told to stop. The caller of a rank makes it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

from rayline.spec import StepReport

Phase = Literal["start", "data", "engine", "evaluate", "save", "snapshot", "export"]
"""What a rank is at: start is everything before the first step, a restore among it; data waits for
the batch; engine is forward, backward and optimizer; the others speak for themselves."""

STEP_PHASES: tuple[Phase, ...] = ("data", "engine")
"""Those that every step has, of a length that is much the same from step to step."""

Around = Callable[[Phase, int], AbstractContextManager[None]]
"""Entered for every phase of every step (0 before the first), left when it is done."""


def unwatched(phase: Phase, step: int) -> AbstractContextManager[None]:
    """The Around of a rank that nobody watches."""
    return nullcontext()


@dataclass(frozen=True, slots=True)
class Link:
    """Every function of it is called in the rank's own thread."""

    observe: Callable[[StepReport], None]
    """Called on rank 0 after every step."""
    stop_requested: Callable[[], bool]
    """Once it is true on any rank, all ranks stop after the step in flight, with a checkpoint."""
    around: Around = unwatched

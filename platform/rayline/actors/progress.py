"""What a rank is at, written down by its training thread and read by another one.

It costs two assignments a phase. Only when a step is overdue is it asked for, with the stack of
every thread: then it tells who waits in which collective, and who does something else.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from rayline.train.link import Phase

_DISTRIBUTED = "torch/distributed/"


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a rank stands, as it tells when it is asked."""

    step: int
    phase: Phase
    for_s: float
    """How long it has been in this phase."""
    collective: str | None
    """What it waits in, by the innermost function of torch.distributed on its stack; None where it
    is in none."""
    stacks: str
    """Of all its threads, innermost call last."""


class Progress:
    """One rank's own record; `around` is called by the training thread, `standing` by any."""

    def __init__(self) -> None:
        self._at: tuple[int, Phase, float] = (0, "start", time.monotonic())
        self._thread: int | None = None

    @contextmanager
    def around(self, phase: Phase, step: int) -> Iterator[None]:
        """The Around of `rayline.train.link`."""
        self._thread = threading.get_ident()
        self._at = (step, phase, time.monotonic())
        yield

    def standing(self) -> Standing:
        """Where the rank stands now."""
        step, phase, since_s = self._at
        frames = sys._current_frames()
        mine = None if self._thread is None else frames.get(self._thread)
        return Standing(
            step=step,
            phase=phase,
            for_s=time.monotonic() - since_s,
            collective=None if mine is None else collective_of(_calls(mine)),
            stacks="\n".join(_told(thread, frame) for thread, frame in frames.items()),
        )


def collective_of(calls: Sequence[tuple[str, str]]) -> str | None:
    """The function of torch.distributed that a stack waits in, None where its innermost call is
    elsewhere. `calls`: file and function, innermost last."""
    if not calls or _DISTRIBUTED not in calls[-1][0]:
        return None
    asked = calls[-1][1]
    for file, function in reversed(calls):
        if _DISTRIBUTED not in file:
            break
        # torch wraps its collectives for logging; the wrapper bears no name of its own.
        asked = asked if file.endswith("c10d_logger.py") else function
    return asked


def _calls(frame: FrameType) -> list[tuple[str, str]]:
    stack = traceback.extract_stack(frame)
    return [(one.filename, one.name) for one in stack]


def _told(thread: int, frame: FrameType) -> str:
    names = {one.ident: one.name for one in threading.enumerate()}
    lines = "".join(traceback.format_stack(frame))
    return f"thread {names.get(thread, thread)}:\n{lines}"

"""What a rank is at, written down by its training thread and read by others.

It costs two assignments a phase. Whether the training thread waits for other ranks is told by the
innermost call on its stack. That is looked at some fifty times a second (`rayline.actors.effort`);
only when a step is overdue is a rank asked for the stack of every thread: then it tells who waits
in which collective, and who does something else.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from types import FrameType

from rayline.train.link import STEP_PHASES, Phase

_DISTRIBUTED = "torch/distributed/"
_DISTRIBUTED_TENSOR = "torch/distributed/tensor/"
"""It computes with the parts of tensors that a rank holds; its collectives are made elsewhere."""
_WAITING = "rayline/parallel/waiting.py"
_OPERATIONS = "torch/_ops.py"
"""Through it Python calls operators by name, those that wait among them: the caller tells which."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a rank stands, as it tells when it is asked."""

    step: int
    phase: Phase
    for_s: float
    """How long it has been in this phase."""
    collective: str | None
    """What it waits in: the function that was called of torch.distributed, or of
    `rayline.parallel.waiting`; None where it is in none."""
    stacks: str
    """Of all its threads, innermost call last."""


class Progress:
    """One rank's own record; `around` is called by the training thread, `standing` by any."""

    def __init__(self) -> None:
        self._at: tuple[int, Phase, float]
        self._thread: int | None
        self.begin()

    def begin(self) -> None:
        """A run begins, of which nothing is known yet."""
        self._at = (0, "start", time.monotonic())
        self._thread = None

    @contextmanager
    def around(self, phase: Phase, step: int) -> Iterator[None]:
        """The Around of `rayline.train.link`."""
        self._thread = threading.get_ident()
        self._at = (step, phase, time.monotonic())
        yield

    @property
    def step(self) -> int:
        """The step that the rank is in, 0 before the first."""
        return self._at[0]

    def is_working(self) -> bool | None:
        """Whether the rank does something of its own in its step now, rather than wait for others;
        None where it is not in a step, or saves or evaluates after it."""
        if self._thread is None or self._at[1] not in STEP_PHASES:
            return None
        return not _is_waiting(sys._current_frames().get(self._thread))

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
    """The function that a stack waits for other ranks in, None where its innermost call is
    elsewhere. `calls`: file and function, innermost last."""
    asked = None
    for file, function in reversed(calls):
        if asked is None and file.endswith(_OPERATIONS):
            continue
        if not _is_for_waiting(file):
            break
        # torch wraps its collectives for logging; the wrapper bears no name of its own.
        asked = asked if asked and file.endswith("c10d_logger.py") else function
    return asked


def _is_waiting(frame: FrameType | None) -> bool:
    """What `collective_of` tells by names, of a live frame and at once."""
    while frame is not None and frame.f_code.co_filename.endswith(_OPERATIONS):
        frame = frame.f_back
    return frame is not None and _is_for_waiting(frame.f_code.co_filename)


@lru_cache(maxsize=1024)
def _is_for_waiting(file: str) -> bool:
    if file.endswith(_WAITING):
        return True
    return _DISTRIBUTED in file and _DISTRIBUTED_TENSOR not in file


def _calls(frame: FrameType) -> list[tuple[str, str]]:
    stack = traceback.extract_stack(frame)
    return [(one.filename, one.name) for one in stack]


def _told(thread: int, frame: FrameType) -> str:
    names = {one.ident: one.name for one in threading.enumerate()}
    lines = "".join(traceback.format_stack(frame))
    return f"thread {names.get(thread, thread)}:\n{lines}"

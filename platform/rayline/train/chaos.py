"""A fault, carried out by the rank that it is meant for, in the middle of what it does.

A phase of the loop is entered through its Link; within it, the very operation is chosen by what
torch is about to run (torch.utils._python_dispatch.TorchDispatchMode, as PyTorch's CommDebugMode
does): the first of a backward pass, the first collective, the first inside an optimizer. So a rank
dies where ranks die, between two operations, and not at a seam that was made for it.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rayline import checkpoint
from rayline.spec import Fault
from rayline.train.link import Around, Phase

_HANG_S = 3600.0
_SILENT_S = 60.0
"""How long a partition lasts."""
_SILENCER = """
import contextlib, os, signal, sys, time
for sent, seconds in ((signal.SIGSTOP, float(sys.argv[1])), (signal.SIGCONT, 0.0)):
    for pid in map(int, sys.argv[2:]):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, sent)
    time.sleep(seconds)
"""
_FULL_BYTES = 1 << 15
"""What a file may hold at most while the disk is full: lines of a log, no shard."""
_OPERATION = 3
"""Which operation of its kind the fault comes before: not the very first, so that the rank is in
the middle of it."""
_PHASES: dict[str, Phase] = {
    "start": "start",
    "data": "data",
    "forward": "engine",
    "backward": "engine",
    "collective": "engine",
    "optimizer": "engine",
    "evaluate": "evaluate",
    "save": "save",
    "snapshot": "snapshot",
}


class Trap:
    """One fault on the rank that it is meant for. Its time is noted before it happens."""

    def __init__(self, fault: Fault, note: Path, around: Around) -> None:
        """`note`: file that takes the Unix time at which it happened; `around`: the link's own."""
        self._fault = fault
        self._note = note
        self._around = around
        self._done = False

    @contextmanager
    def around(self, phase: Phase, step: int) -> Iterator[None]:
        """The Around to give the rank in place of its own."""
        with self._around(phase, step):
            if not self._is_due(phase, step):
                yield
                return
            with _Watch(self):
                yield
            # A phase in which the wanted operation did not come.
            self.spring()

    def _is_due(self, phase: Phase, step: int) -> bool:
        mine = phase == _PHASES[self._fault.phase] and step == self._fault.step
        return mine and not self._done

    def comes_before(self, operation: Any) -> bool:
        """Whether `operation`, which torch is about to run, is of the wanted kind."""
        wanted = self._fault.phase
        if wanted == "collective":
            return bool(operation.namespace in ("c10d", "_c10d_functional"))
        if wanted == "backward":
            # Public only in C++; torch's own CommDebugMode and FSDP ask it too.
            return bool(torch._C._current_graph_task_id() != -1)
        if wanted == "optimizer":
            return _inside_optimizer(sys._getframe())
        return True

    def spring(self) -> None:
        """Let it happen, once."""
        if not self._done:
            self._done = True
            self._happen()

    def _happen(self) -> None:
        self._note_time()
        if self._fault.kind == "node":
            # Ray's node manager started this worker, and ends when it is gone: so do the others.
            os.kill(os.getppid(), signal.SIGKILL)
        if self._fault.kind in ("kill", "node"):
            os.kill(os.getpid(), signal.SIGKILL)
        elif self._fault.kind == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif self._fault.kind == "hang":
            time.sleep(_HANG_S)
        elif self._fault.kind == "partition":
            _silence(psutil.Process(os.getppid()), _SILENT_S)
        else:
            raise RuntimeError(f"planted: {self._fault}")

    def _note_time(self, **seen: str) -> None:
        self._note.parent.mkdir(parents=True, exist_ok=True)
        told = {"fault": str(self._fault), "at_s": time.time(), **seen}
        self._note.write_text(json.dumps(told))


def _silence(raylet: psutil.Process, seconds: float) -> None:
    """Stop a node, this process with it, and let it go on after so long as if nothing had happened:
    what others see of a network that is cut. Returns once it has come back."""
    node = [raylet, *raylet.children(recursive=True)]
    words = [sys.executable, "-c", _SILENCER, str(seconds), *(str(one.pid) for one in node)]
    subprocess.run(words, check=False, start_new_session=True)


class Damage(Trap):
    """A bit of the newest checkpoint lost, and the rank with it. What a gang that had to begin from
    storage would then find is noted before."""

    def __init__(self, fault: Fault, note: Path, around: Around, root: checkpoint.Location) -> None:
        """`root`: where the checkpoints are. The rest as `Trap`."""
        super().__init__(fault, note, around)
        self._root = root

    def _happen(self) -> None:
        damaged = checkpoint.damage_newest(self._root)
        found = checkpoint.newest_intact(self._root, damaged.model_fingerprint)
        taken = "none" if found is None else found.folder.name
        passed_over = [] if found is None else found.skipped
        self._note_time(taken=taken, passed_over="; ".join(passed_over))
        os.kill(os.getpid(), signal.SIGKILL)


class FullDisk(Trap):
    """A disk without room, for so many steps: the kernel lets the keeper of this rank's node write
    no file that is larger than a few lines (RLIMIT_FSIZE), whoever's the disk is."""

    def __init__(self, fault: Fault, note: Path, around: Around, keeper: int, steps: int) -> None:
        """`keeper`: its process; `steps`: how many the disk is full for. The rest as `Trap`."""
        super().__init__(fault, note, around)
        self._keeper = keeper
        self._last_step = fault.step + steps
        self._done = note.exists()
        self._has_room_again = False

    @contextmanager
    def around(self, phase: Phase, step: int) -> Iterator[None]:
        """The Around to give the rank in place of its own."""
        if self._done and step > self._last_step and not self._has_room_again:
            self._has_room_again = True
            self._let_write(resource.RLIM_INFINITY)
        with super().around(phase, step):
            yield

    def _happen(self) -> None:
        self._note_time()
        self._let_write(_FULL_BYTES)

    def _let_write(self, most_bytes: int) -> None:
        _, hard = resource.prlimit(self._keeper, resource.RLIMIT_FSIZE)
        # Without a limit means: up to the hard one.
        soft = hard if most_bytes == resource.RLIM_INFINITY else most_bytes
        resource.prlimit(self._keeper, resource.RLIMIT_FSIZE, (soft, hard))


class Drag(Trap):
    """Slowness: in each step from the fault's on, the rank sleeps as long as its shortest step has
    taken, the waiting for others included. So what it does itself takes twice as long, or more."""

    def __init__(self, fault: Fault, note: Path, around: Around) -> None:
        """See `Trap`."""
        super().__init__(fault, note, around)
        self._shortest_s = 0.0
        self._slept_s = 0.0

    @contextmanager
    def around(self, phase: Phase, step: int) -> Iterator[None]:
        """The Around to give the rank in place of its own."""
        began_s, self._slept_s = time.perf_counter(), 0.0
        with super().around(phase, step):
            yield
        if phase == "engine":
            took_s = time.perf_counter() - began_s - self._slept_s
            self._shortest_s = min(took_s, self._shortest_s or took_s)

    def _is_due(self, phase: Phase, step: int) -> bool:
        return phase == _PHASES[self._fault.phase] and step >= self._fault.step

    def spring(self) -> None:
        """Let the rank be slow, once in the phase."""
        if self._slept_s:
            return
        if not self._done:
            self._done = True
            self._note_time()
        time.sleep(self._shortest_s)
        self._slept_s = self._shortest_s


class _Watch(TorchDispatchMode):
    """Springs a trap before the third operation of the wanted kind; a collective's before the
    first, since a step may have few."""

    def __init__(self, trap: Trap) -> None:
        super().__init__()
        self._trap = trap
        self._left = _OPERATION

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:  # the signature is torch's
        if self._trap.comes_before(func):
            self._left -= 1
            if self._left <= 0 or func.namespace == "c10d":
                self._trap.spring()
        return func(*args, **(kwargs or {}))


def _inside_optimizer(frame: FrameType | None) -> bool:
    while frame is not None:
        file = frame.f_code.co_filename
        if "/torch/optim/" in file or "/rayline/train/rules/" in file:
            return True
        frame = frame.f_back
    return False

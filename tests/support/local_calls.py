"""What is called in forked processes in tests of them; imported there by name."""

import os
import signal
import time
from pathlib import Path

from rayline.errors import SpecError


def process_and_sum(*numbers: int) -> tuple[int, int]:
    return os.getpid(), sum(numbers)


def refuse() -> None:
    raise SpecError("model", "cannot be built", fix="use another")


def fail_late(seconds: float) -> None:
    time.sleep(seconds)
    raise ZeroDivisionError("the user's own mistake")


def lose_contact() -> None:
    raise RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [::1]:1234")


def be_killed() -> None:
    print("last words", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def wait(note: Path) -> None:
    note.write_text(str(os.getpid()))
    time.sleep(600)


def run_until_killed(folder: Path) -> None:
    """A driver whose calls never end."""
    from rayline.actors.local import local_processes
    from rayline.train.verify.forks import Call

    with local_processes([], folder) as run:
        notes = [folder / f"note-{n}" for n in range(2)]
        run(
            [Call(note.name, "support.local_calls:wait", (note,), folder / "log") for note in notes]
        )

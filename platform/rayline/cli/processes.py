"""What this process started, and proof that it has ended."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil

END_TIMEOUT_S = 30.0
POLL_S = 0.1


def descendants() -> list[psutil.Process]:
    """Every process below this one, now."""
    import psutil

    return psutil.Process().children(recursive=True)


def wait_until_gone(
    processes: Sequence[psutil.Process], timeout_s: float = END_TIMEOUT_S
) -> list[psutil.Process]:
    """Wait for processes to end; those that have not by then are killed and returned.

    Taken as a list before the teardown, it also finds what lost its parent on the way.
    """
    deadline_s = time.monotonic() + timeout_s
    alive = [process for process in processes if _runs(process)]
    while alive and time.monotonic() < deadline_s:
        time.sleep(POLL_S)
        alive = [process for process in alive if _runs(process)]
    for process in alive:
        process.kill()
    return alive


def _runs(process: psutil.Process) -> bool:
    """False for a zombie too: it has ended, and only its parent has not heard of it yet."""
    import psutil

    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@contextmanager
def mlflow_page(uri: str, port: int) -> Iterator[str]:
    """MLflow's web page over the store at `uri`, for as long as the context lasts: its address."""
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri]
    page = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        page.terminate()
        page.wait()


def free_port(wanted: int) -> int:
    """`wanted` where nothing listens there on this machine, else a free port from the system."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            found: int = probe.getsockname()[1]
            return found
    raise OSError("no free port on 127.0.0.1")

"""A real `mlflow server` that can be stopped and started again at the same address."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx

START_TIMEOUT_S = 150.0


class MlflowServer:
    """One server, in a process group of its own, over the store `backend`."""

    def __init__(self, folder: Path, backend: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = int(probe.getsockname()[1])
        self._folder = folder
        self._backend = backend
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def uri(self) -> str:
        """As TrackingSpec.uri takes it."""
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Return once it answers."""
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"),
                *("--port", str(self._port), "--workers", "1"),
                *("--backend-store-uri", self._backend),
                *("--artifacts-destination", str(self._folder / "kept")),
            ],
            cwd=self._folder,
            # Without it a dozen processes wait for jobs that nobody sends.
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not self._answers():
            assert self._process.poll() is None
            assert time.monotonic() < deadline_s
            time.sleep(0.1)

    def stop(self) -> None:
        """End it at once, whatever it is answering."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(10)
            self._process = None

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.uri}/health").is_success
        except httpx.HTTPError:
            return False

"""A token-protected cluster of one head, started and ended by its process group."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[2]
TOKEN = "a-token-of-this-test-only-0123456789abcdef"


@dataclass(frozen=True)
class ProtectedCluster:
    """Where it is, and what its users know."""

    address: str
    token_file: Path
    session_dir: Path

    def run_user(
        self, script: str, *arguments: str, with_token: bool = True, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """A user's own process: Ray keeps the first token that a process had."""
        outside = {name: each for name, each in os.environ.items() if not name.startswith("RAY_")}
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token_file)}
        without = {"HOME": str(self.token_file.parent / "nobody")}
        return subprocess.run(
            [sys.executable, "-c", script, *arguments],
            env={
                **outside,
                "PYTHONPATH": str(ROOT / "platform"),
                **(token if with_token else without),
                **environment,
            },
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def protected_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProtectedCluster]:
    home = tmp_path_factory.mktemp("home")
    token_file = home / "auth_token"
    token_file.write_text(TOKEN)
    token_file.chmod(0o600)
    # Sockets lie below it, and their paths may have 107 characters.
    session_dir = Path(tempfile.mkdtemp(prefix="ray-"))
    dashboard, ports = free_port(), [free_port() for _ in range(3)]
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "HOME": str(home),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_file),
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    ray = str(Path(sys.executable).parent / "ray")
    command = [ray, "start", "--head", "--block", "--num-cpus", "2", "--port", str(ports[0])]
    command += ["--dashboard-port", str(dashboard), "--ray-client-server-port", str(ports[1])]
    command += ["--dashboard-agent-listen-port", str(ports[2]), "--temp-dir", str(session_dir)]
    head = subprocess.Popen(
        command,
        env={**environment, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{dashboard}"
    try:
        _wait_until_it_answers(address, head)
        yield ProtectedCluster(address, token_file, session_dir)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(head.pid, signal.SIGKILL)
        head.wait()
        shutil.rmtree(session_dir, ignore_errors=True)


def _wait_until_it_answers(address: str, head: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 90
    while True:
        assert head.poll() is None, "the head did not start"
        try:
            httpx.get(f"{address}/api/version", timeout=5)
            return
        except httpx.HTTPError:
            assert time.monotonic() < deadline, "the dashboard did not answer"
            time.sleep(0.5)

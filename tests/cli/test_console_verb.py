"""`rayline console` as somebody runs it: it says where it answers and by what key, until Ctrl-C."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from rayline.cli import run


def test_it_serves_until_it_is_interrupted_and_leaves_nothing(
    start_command: Callable[[list[str], Path], Any], tmp_path: Path
) -> None:
    begun = start_command(["console", "--json", "--store", f"sqlite:///{tmp_path}/k.db"], tmp_path)
    told = ""
    for line in begun.process.stdout:
        told += line
        if line == "}\n":
            break
    opened = json.loads(told)
    assert opened["may_change"] is False
    assert opened["url"].startswith("http://127.0.0.1:")
    assert httpx.get(f"{opened['url']}/api/me").status_code == 401
    bearer = {"authorization": f"Bearer {opened['key']}"}
    me = httpx.get(f"{opened['url']}/api/me", headers=bearer).json()
    assert (me["name"], me["tracking"]) == ("console key", "sqlite:///mlflow.db")
    assert httpx.get(f"{opened['url']}/api/runs", headers=bearer).json()["rows"] == []
    begun.process.send_signal(signal.SIGINT)
    code, _, said = begun.finish(timeout_s=20)
    assert code == 130
    assert opened["key"] not in said
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_says_what_would_be_served(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["console", "--dry-run", "--json", "--allow-changes", "--port", "8400"]
    assert run([*words, "--tracking-uri", "sqlite:///x.db"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["port"], told["allow_changes"]) == (8400, True)
    assert told["tracking"]["uri"] == "sqlite:///x.db"


def test_a_port_that_is_taken_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        store = ["--tracking-uri", f"sqlite:///{tmp_path}/none.db"]
        assert run(["console", "--port", str(port), *store]) == 2
    said = capsys.readouterr().err
    assert "cannot listen there" in said
    assert "--port 0" in said

"""submit, status, logs and stop against a real cluster: the exit code is the job's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from rayline.cli import run
from rayline.cli.processes import free_port

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def dashboard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a cluster of one head, started and ended by its process group."""
    folder = tmp_path_factory.mktemp("ray")
    port = free_port(0)
    words = [str(Path(sys.executable).parent / "ray"), "start", "--head", "--block"]
    words += ["--num-cpus", "2", "--port", str(free_port(0)), "--dashboard-port", str(port)]
    words += ["--ray-client-server-port", str(free_port(0))]
    words += ["--dashboard-agent-listen-port", str(free_port(0)), "--temp-dir", str(folder / "r")]
    outside = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    head = subprocess.Popen(
        words,
        env={
            **outside,
            # Jobs are started as `python`: that has to be this one.
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
        },
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        until_it_answers(address, head)
        yield address
    finally:
        os.killpg(head.pid, signal.SIGKILL)
        head.wait()


def until_it_answers(address: str, head: subprocess.Popen[bytes]) -> None:
    deadline_s = time.monotonic() + 90
    while True:
        assert head.poll() is None, "the head did not start"
        try:
            httpx.get(f"{address}/api/version", timeout=5)
            return
        except httpx.HTTPError:
            assert time.monotonic() < deadline_s, "the dashboard did not answer"
            time.sleep(0.5)


@pytest.mark.ray
def test_a_job_that_fails_fails_here_with_its_own_code(
    dashboard: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    words = ["submit", "jobs/specs/quickstart.yaml", "--address", dashboard]
    code = run([*words, "--set", "model={registry: nobody@latest}"])
    shown = capsys.readouterr().out
    assert code == 2, shown
    job_id = shown.split()[1]
    assert "model.registry: " in shown
    assert f"{job_id} failed" in shown

    assert run(["status", "--address", dashboard, "--json"]) == 0
    (listed,) = json.loads(capsys.readouterr().out)
    assert (listed["job_id"], listed["state"]) == (job_id, "failed")

    assert run(["logs", job_id, "--address", dashboard]) == 0
    assert "model.registry: " in capsys.readouterr().out

    assert run(["stop", "no-such-job", "--address", dashboard]) == 2
    assert "no such job" in capsys.readouterr().err


def test_a_dashboard_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["status", "--address", "http://127.0.0.1:9"]) == 3
    assert "cannot be reached" in capsys.readouterr().err


def test_a_dry_run_shows_the_plan_and_sends_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    words = ["jobs/specs/tiny-3d.yaml", "--address", "http://127.0.0.1:9", "--dry-run"]
    assert run(["submit", *words]) == 0
    assert "data 2 x tensor 2 x pipeline 2 = 8 workers" in capsys.readouterr().out

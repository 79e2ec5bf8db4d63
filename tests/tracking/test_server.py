"""The same door with an MLflow server behind it: nothing in it leans on a local file."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from rayline.errors import CheckpointError
from rayline.spec import ExportReport, StepReport, TrackingSpec
from rayline.tracking import (
    list_models,
    list_runs,
    open_run,
    read_run,
    register_model,
    resolve_model,
)

START_TIMEOUT_S = 150.0


@pytest.fixture
def server(tmp_path: Path, empty_database: Path) -> Iterator[tuple[TrackingSpec, int]]:
    """An MLflow server in a process group of its own; its address, and the group to end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    (tmp_path / "server.db").write_bytes(empty_database.read_bytes())
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"),
            *("--port", str(port), "--workers", "1"),
            *("--backend-store-uri", f"sqlite:///{tmp_path / 'server.db'}"),
            *("--artifacts-destination", str(tmp_path / "kept")),
        ],
        cwd=tmp_path,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    uri = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not answers(uri):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        yield TrackingSpec(uri=uri, experiment="over http"), process.pid
    finally:
        end(process.pid)
        process.wait(10)


def answers(uri: str) -> bool:
    try:
        return httpx.get(f"{uri}/health").is_success
    except httpx.HTTPError:
        return False


def end(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


def test_a_run_and_its_model_over_http_and_a_server_that_dies(
    server: tuple[TrackingSpec, int],
    report: Callable[[int], StepReport],
    export: tuple[Path, ExportReport],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tracking, group = server
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with open_run(tracking, name="job", params={"steps": 2}, tags={}) as run:
        run.observe(report(1))
        ref = register_model(tracking, run, export[0], "bot", "champion", export[1])
    assert [entry.status for entry in list_runs(tracking)] == ["finished"]
    assert read_run(tracking, run.run_id).metrics["loss"][0].value == 8.0
    assert [model.aliases for model in list_models(tracking)] == [{"champion": 1}]

    folder = resolve_model(ref, tracking)
    assert folder.is_relative_to(tmp_path / "home")
    assert sorted(file.name for file in folder.iterdir()) == sorted(export[1].sha256)
    before = (folder / "config.json").stat().st_mtime_ns
    assert resolve_model(ref, tracking) == folder
    assert (folder / "config.json").stat().st_mtime_ns == before
    (folder / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        resolve_model(ref, tracking)

    cut_off = open_run(tracking, name="cut off", params={}, tags={})
    end(group)
    with caplog.at_level(logging.WARNING, logger="rayline"):
        began = time.monotonic()
        for step in range(1, 101):
            cut_off.observe(report(step))
        cut_off.finish("finished")
        assert time.monotonic() - began < 60.0
    assert cut_off.unsent_rows >= 600
    assert "does not have" in caplog.text

"""The same door with an MLflow server behind it: nothing in it leans on a local file."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

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
from support.mlflow_server import MlflowServer


@pytest.fixture
def server(tmp_path: Path, empty_database: Path) -> Iterator[MlflowServer]:
    (tmp_path / "server.db").write_bytes(empty_database.read_bytes())
    running = MlflowServer(tmp_path, f"sqlite:///{tmp_path / 'server.db'}")
    try:
        running.start()
        yield running
    finally:
        running.stop()


def test_a_run_and_its_model_over_http_and_a_server_that_dies(
    server: MlflowServer,
    report: Callable[[int], StepReport],
    export: tuple[Path, ExportReport],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tracking = TrackingSpec(uri=server.uri, experiment="over http")
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

    cut_off = open_run(tracking, name="cut off", params={}, tags={}, directory=tmp_path / "job")
    server.stop()
    with caplog.at_level(logging.WARNING, logger="rayline"):
        began = time.monotonic()
        for step in range(1, 101):
            cut_off.observe(report(step))
        cut_off.finish("finished")
        assert time.monotonic() - began < 60.0
    assert cut_off.unsent_rows >= 600
    assert "does not have" in caplog.text
    assert f"rayline sync {tmp_path / 'job'}" in caplog.text

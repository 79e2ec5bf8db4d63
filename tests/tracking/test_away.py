"""A tracking server that is away, at the start, in the middle and at the end of runs: nothing
waits, nothing is lost, nothing is there twice."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rayline.spec import ExportReport, ModelRef, StepReport, TrackingSpec
from rayline.tracking import (
    fill_in,
    list_models,
    list_runs,
    model_version,
    open_run,
    read_run,
    register_model,
    waiting_in,
)
from rayline.tracking.rows import MetricRow
from rayline.tracking.run import TrackedRun
from rayline.tracking.spool import Description, Spool
from support.mlflow_server import MlflowServer
from support.postgres import PostgresServer

Reports = Callable[[int], StepReport]


@pytest.fixture
def postgres() -> Iterator[str]:
    server = PostgresServer()
    try:
        server.start()
        yield server.address.replace("postgresql://", "postgresql+psycopg://")
    finally:
        server.remove()


@pytest.fixture(params=["postgresql", pytest.param("sqlite", marks=pytest.mark.engines)])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MlflowServer]:
    """Over either database. A server behind HTTP is the same for us, whatever lies behind it, so
    one of the two is enough for every day."""
    if request.param == "sqlite":
        backend = f"sqlite:///{tmp_path / 'server.db'}"
        shutil.copy(request.getfixturevalue("empty_database"), tmp_path / "server.db")
    else:
        backend = request.getfixturevalue("postgres")
    running = MlflowServer(tmp_path, backend)
    try:
        running.start()
        yield running
    finally:
        running.stop()


@pytest.mark.timeout(300)
def test_every_row_is_there_once_whenever_the_server_was_away(
    server: MlflowServer,
    report: Reports,
    export: tuple[Path, ExportReport],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tracking = TrackingSpec(uri=server.uri, experiment="away")

    # In the middle: the server goes while rows flow, for half of the run.
    middle = open_run(tracking, name="middle", params={"steps": 300}, tags={}, directory=tmp_path)
    slowest_s = observe(middle, report, 1, 100)
    server.stop()
    slowest_s = max(slowest_s, observe(middle, report, 101, 250))
    middle.event("restarted", "while it was away")
    middle.log_text("steps: 300\n", "best.yaml")
    assert middle.unsent_rows > 1000
    assert slowest_s < 0.5

    # At the start and at the end of another, which never finds it.
    with caplog.at_level(logging.WARNING, logger="rayline"):
        never = open_run(tracking, name="never", params={"steps": 9}, tags={}, directory=tmp_path)
        assert "Is the address right?" in caplog.text
        observe(never, report, 1, 50)
        never.event("stopped", "once")
        later = register_model(tracking, never, export[0], "bot", "champion", export[1])
        never.finish("failed")
    assert never.failures == 1
    # What was exported lies where it lay, and is registered once the server is back.
    assert later == ModelRef(directory=str(export[0]))
    assert f"rayline sync {tmp_path}" in caplog.text
    # And one whose driver is killed meanwhile.
    killed(tracking, tmp_path)
    # Whoever sends may die before it notes that it has sent: then all of it is sent again.
    place = never._spool.folder
    shutil.copytree(place, tmp_path / "copy")

    server.start()
    observe(middle, report, 251, 300)
    middle.finish("finished")
    assert middle.unsent_rows == 0
    # The next start in the folder sends what the others had left.
    with open_run(tracking, name="next", params={}, tags={}, directory=tmp_path):
        deadline_s = time.monotonic() + 30
        while len(list((tmp_path / "tracking").iterdir())) > 1:
            assert time.monotonic() < deadline_s
            time.sleep(0.1)
    assert list(waiting_in(tmp_path)) == []
    shutil.copytree(tmp_path / "copy", place)
    (again,) = fill_in(tmp_path)
    assert (again.name, again.problem) == ("never", None)
    assert fill_in(tmp_path) == []

    runs = {run.name: run for run in list_runs(tracking)}
    assert {name: run.status for name, run in runs.items()} == {
        "middle": "finished",
        "never": "failed",
        "killed": "running",
        "next": "finished",
    }
    assert len(list_runs(tracking)) == 4
    for name, steps in (("middle", 300), ("never", 50), ("killed", 20)):
        record = read_run(tracking, runs[name].run_id)
        for metric in ("loss", "grad_norm", "tokens_per_s"):
            assert [point.step for point in record.metrics[metric]] == list(range(1, steps + 1))
        assert [point.value for point in record.metrics["loss"]] == [
            pytest.approx(8 / step) for step in range(1, steps + 1)
        ]
    record = read_run(tracking, middle.run_id)
    assert [event.kind for event in record.events] == ["restarted"]
    assert list((tmp_path / "kept").rglob("best.yaml"))
    # Its key finds the run that had no id when it began.
    record = read_run(tracking, never._spool.description.key)
    assert record.params == {"steps": "9"}
    assert [event.kind for event in record.events] == ["stopped", "registered"]
    assert model_version(ModelRef(registry="bot@champion"), tracking) == 1
    assert [model.newest_version for model in list_models(tracking)] == [1]


def observe(run: TrackedRun, report: Reports, first: int, last: int) -> float:
    """Report steps at some pace; the longest that one call took."""
    slowest_s = 0.0
    for step in range(first, last + 1):
        began_s = time.monotonic()
        run.observe(report(step))
        slowest_s = max(slowest_s, time.monotonic() - began_s)
        time.sleep(0.002)
    return slowest_s


def killed(tracking: TrackingSpec, folder: Path) -> None:
    """A driver that is killed while the server is away."""
    code = f"""
import os, signal
from pathlib import Path
from rayline.spec import StepReport, TrackingSpec
from rayline.tracking import open_run
tracking = TrackingSpec(uri={tracking.uri!r}, experiment={tracking.experiment!r})
run = open_run(tracking, name="killed", params={{}}, tags={{}}, directory=Path({str(folder)!r}))
for step in range(1, 21):
    run.observe(StepReport(step=step, loss=8 / step, grad_norm=1.5, lr=1e-3, tokens=90,
                           processed_tokens=100, seconds=0.5, memory_bytes=2**30))
os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, check=False
    )
    assert ended.returncode < 0, ended.stderr


def test_a_run_in_one_store_can_be_filled_into_another(
    tracking: TrackingSpec, report: Reports, tmp_path: Path
) -> None:
    mistyped = TrackingSpec(uri="http://127.0.0.1:1", experiment="tests")
    with open_run(mistyped, name="job", params={"steps": 3}, tags={}, directory=tmp_path) as run:
        run.observe(report(1))
        run.add(MetricRow("extra", 1.0, 5, 1))
    (waits,) = fill_in(tmp_path, dry_run=True)
    assert (waits.name, waits.uri) == ("job", "http://127.0.0.1:1")
    assert waits.rows > 10
    (stays,) = fill_in(tmp_path)
    assert "cannot be reached" in str(stays.problem)
    (filled,) = fill_in(tmp_path, tracking=tracking)
    assert (filled.rows, filled.problem) == (waits.rows, None)
    record = read_run(tracking, filled.run_id)
    assert record.summary.status == "finished"
    assert [point.value for point in record.metrics["extra"]] == [1.0]
    assert record.params == {"steps": "3"}


def test_a_run_that_goes_on_gets_what_its_last_driver_left_first(
    tracking: TrackingSpec, report: Reports, tmp_path: Path
) -> None:
    run = open_run(tracking, name="job", params={}, tags={}, directory=tmp_path)
    for step in (1, 2):
        run.observe(report(step))
    run.event("stopped", "its driver ended here")
    run.finish("interrupted")
    # As a driver leaves it that was killed before it could send the last steps.
    left = Spool(
        tmp_path / "tracking" / "killed",
        Description("killed", tracking.uri, tracking.experiment, "job", 0, run_id=run.run_id),
    )
    left.append([MetricRow("step", 3.0, 30, 3), MetricRow("loss", 2.0, 30, 3)])
    left.close()
    again = open_run(
        tracking, name="job", params={}, tags={}, directory=tmp_path, run_id=run.run_id
    )
    assert again.known_step == 3
    again.finish("finished")
    losses = read_run(tracking, run.run_id).metrics["loss"]
    assert [point.step for point in losses] == [1, 2, 3]


def test_jobs_below_a_folder_are_found_and_no_others(tmp_path: Path) -> None:
    for job in ("runs/one", "runs/tracking", ".rayline", "a/b/c/d", "a/b/c/d/e", ".hidden/job"):
        Spool(
            tmp_path / job / "tracking" / "key", Description("key", "http://x", "tests", "job", 0)
        ).close()
    found = {str(place.relative_to(tmp_path)) for place in waiting_in(tmp_path)}
    assert found == {"runs/one", "runs/tracking", ".rayline", "a/b/c/d"}
    assert list(waiting_in(tmp_path / "runs" / "one")) == [tmp_path / "runs" / "one"]

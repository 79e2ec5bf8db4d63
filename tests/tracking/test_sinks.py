"""TensorBoard, W&B and SwanLab, the real ones, without a network: each gets the rows that MLflow
gets, and none of their processes is left."""

from __future__ import annotations

import json
import logging
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from rayline.errors import SpecError
from rayline.spec import EvalReport, StepReport, TrackingSpec
from rayline.tracking import open_run, read_run

Reports = Callable[[int], StepReport]
LOSSES = {1: 8.0, 2: 4.0, 3: pytest.approx(8 / 3)}


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nobody is signed in, and nothing is written beside the test."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("SWANLAB_SAVE_DIR", str(tmp_path / "home" / ".swanlab"))
    for name in ("WANDB_API_KEY", "WANDB_MODE", "SWANLAB_API_KEY", "SWANLAB_MODE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "home").mkdir()


def log_records(content: bytes) -> Iterator[bytes]:
    """The records of a .wandb file: after a header of 7 bytes a LevelDB log, blocks of 32 KiB of
    pieces (checksum, length, whether it is whole, first, middle or last)."""
    block_bytes, at, whole = 32768, 7, b""
    while at + 7 <= len(content):
        if block_bytes - at % block_bytes < 7:
            at += block_bytes - at % block_bytes
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield whole
            whole = b""


def recorded(tracking: TrackingSpec, report: Reports, folder: Path, *sinks: str) -> int:
    """A run of three steps with these sinks; what its sinks did not take."""
    spec = tracking.changed({"sinks": list(sinks)})
    with open_run(spec, name="job", params={"optim.lr": 0.1}, tags={}, directory=folder) as run:
        early = EvalReport(step=0, loss=9.0, tokens=90, sequences=4, seconds=0.1)
        run.observe(replace(report(1), evaluations=(early,)))
        run.observe(report(2))
        run.observe(report(3))
    assert len(read_run(tracking, run.run_id).metrics["loss"]) == 3
    return run.failures


def test_tensorboard_shows_what_mlflow_has(
    tracking: TrackingSpec, report: Reports, tmp_path: Path
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert recorded(tracking, report, tmp_path / "job", "tensorboard") == 0
    events = EventAccumulator(str(tmp_path / "job" / "tensorboard"))
    events.Reload()
    assert {event.step: event.value for event in events.Scalars("loss")} == LOSSES
    assert {"val_loss", "lr", "time/step_s"} <= set(events.Tags()["scalars"])


def test_wandb_keeps_a_run_in_the_jobs_folder_and_its_service_ends(
    tracking: TrackingSpec, report: Reports, tmp_path: Path
) -> None:
    from wandb.proto.wandb_internal_pb2 import Record

    before = set(psutil.Process().children(recursive=True))
    assert recorded(tracking, report, tmp_path / "job", "wandb") == 0
    (file,) = (tmp_path / "job" / "wandb").glob("offline-run-*/run-*.wandb")
    losses: dict[int, float] = {}
    for content in log_records(file.read_bytes()):
        record = Record()
        record.ParseFromString(content)
        row = {
            item.key or "/".join(item.nested_key): json.loads(item.value_json)
            for item in record.history.item
        }
        if "loss" in row:
            losses[row["_step"]] = row["loss"]
    assert losses == LOSSES
    deadline_s = time.monotonic() + 10
    while set(psutil.Process().children(recursive=True)) - before:
        assert time.monotonic() < deadline_s
        time.sleep(0.1)


def test_swanlab_keeps_a_run_in_the_jobs_folder(
    tracking: TrackingSpec, report: Reports, tmp_path: Path
) -> None:
    assert recorded(tracking, report, tmp_path / "job", "swanlab") == 0
    files = [file for file in (tmp_path / "job" / "swanlab").rglob("*") if file.is_file()]
    assert any(b"val_loss" in file.read_bytes() for file in files)


def test_a_sink_that_fails_is_counted_and_told_once(
    tracking: TrackingSpec, report: Reports, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "tensorboard").write_text("a file, where a folder is wanted")
    with caplog.at_level(logging.WARNING, logger="rayline"):
        assert recorded(tracking, report, tmp_path / "job", "tensorboard") == 1
    assert caplog.text.count("tensorboard does not take") == 1


def test_none_is_imported_that_is_not_asked_for() -> None:
    code = """
import sys
import rayline.tracking
import rayline.tracking.sinks
print(*sorted({"tensorboard", "wandb", "swanlab"} & set(sys.modules)))
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    loaded = subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True
    )
    assert loaded.stdout.split() == []


def test_an_unknown_sink_is_refused() -> None:
    with pytest.raises(SpecError, match=r"tracking|sinks"):
        TrackingSpec.parse({"sinks": ["comet"]})

"""A real MLflow on SQLite for each test, in its own folder."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from rayline.spec import ExportReport, StepReport, TrackingSpec
from rayline.tracking.store import connect, experiment_id


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow takes seconds to lay out its tables; every test gets a copy of this file."""
    file = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    connect(TrackingSpec(uri=f"sqlite:///{file}")).search_experiments()
    return file


@pytest.fixture
def tracking(tmp_path: Path, empty_database: Path) -> TrackingSpec:
    folder = tmp_path / "store"
    folder.mkdir()
    shutil.copy(empty_database, folder / "mlflow.db")
    spec = TrackingSpec(uri=f"sqlite:///{folder / 'mlflow.db'}", experiment="tests")
    experiment_id(connect(spec), spec)
    return spec


@pytest.fixture
def report() -> Callable[[int], StepReport]:
    def make(step: int) -> StepReport:
        return StepReport(
            step=step,
            loss=8.0 / step,
            grad_norm=1.5,
            lr=1e-3,
            tokens=90,
            processed_tokens=100,
            seconds=0.5,
            memory_bytes=2**30,
        )

    return make


@pytest.fixture
def export(tmp_path: Path) -> tuple[Path, ExportReport]:
    """A small folder in Hugging Face's layout, and the report of its verification."""
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 64)
    hashes = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}
    return folder, ExportReport(
        directory=str(folder),
        step=7,
        parameters=4096,
        logit_difference=2e-6,
        logit_tolerance=1e-4,
        probed_tokens=64,
        sha256=hashes,
    )

"""One tracking store for all tests of the console: real runs in a real MLflow, on SQLite."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from rayline.console import ConsoleSettings
from rayline.models.tiny import write_tiny_model
from rayline.serving.access.key_store import open_keys
from rayline.spec import EvalReport, ExportReport, JobSpec, KeySpec, StepReport, TrackingSpec
from rayline.spec.job_file import SPEC_FILE
from rayline.tracking import (
    Seat,
    Served,
    gang_record,
    gang_tags,
    open_run,
    record_deployment,
    register_model,
)
from support.console_house import ChattingEngine, HousedClient
from support.house import House


def report(step: int, loss: float | None = None) -> StepReport:
    """A step of a run."""
    held_out = EvalReport(step=step, loss=4.0 / step, tokens=100, sequences=4, seconds=0.1)
    return StepReport(
        step=step,
        loss=8.0 / step if loss is None else loss,
        grad_norm=1.0 + 1 / step,
        lr=1e-3,
        tokens=90,
        processed_tokens=4096,
        seconds=0.5,
        memory_bytes=2**30,
        evaluations=(held_out,) if step % 5 == 0 else (),
    )


@pytest.fixture(scope="session")
def step_report() -> Callable[[int], StepReport]:
    return report


@dataclass(frozen=True)
class Recorded:
    """What the store has."""

    tracking: TrackingSpec
    folder: Path
    job: JobSpec
    run_id: str
    """A run that finished, of four ranks on two nodes, registered as bot@champion."""
    search_id: str


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    folder = tmp_path_factory.mktemp("console")
    tracking = TrackingSpec(uri=f"sqlite:///{folder}/mlflow.db")
    (folder / "text.jsonl").write_text(
        "\n".join(json.dumps({"text": f"{n} and {n * n}"}) for n in range(900))
    )
    job = JobSpec.parse(
        {
            "name": "small",
            "model": {"directory": str(write_tiny_model(folder / "model"))},
            "steps": 60,
            "data": {"kind": "text", "files": [str(folder / "text.jsonl")], "sequence_tokens": 32},
            "batch": {"sequences": 8},
            "optim": {"lr": 1e-3},
            "plan": {"pipeline": 2, "data": 2, "microbatches": 2},
            "resources": {"device": "cpu"},
            "output_dir": str(folder / "runs"),
            "tracking": {"uri": tracking.uri},
        }
    )
    return Recorded(tracking, folder, job, _finished_run(job, folder), _search(job))


def _finished_run(job: JobSpec, folder: Path) -> str:
    tags = {"rayline.plan": str(job.plan), "rayline.fingerprint": job.fingerprint()}
    with open_run(job.tracking, name=job.name, params=job.flat(), tags=tags) as run:
        run.log_text(job.to_yaml(), SPEC_FILE)
        seats = [
            Seat(rank, str(job.plan.coordinate(rank)), f"node{rank // 2}", "10.0.0.1", 4000 + rank)
            for rank in range(4)
        ]
        for key, told in gang_tags(gang_record(1, seats)).items():
            run.tag(key, told)
        for step in range(1, 61):
            run.observe(report(step))
        export, found = _export(folder)
        register_model(job.tracking, run, export, "bot", "champion", found)
    served = Served("bot", 1, "bot", 1, "revision", "champion", stable=True)
    record_deployment(job.tracking, served)
    return run.run_id


def _export(folder: Path) -> tuple[Path, ExportReport]:
    there = folder / "export"
    there.mkdir()
    (there / "config.json").write_text("{}")
    hashes = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in there.iterdir()}
    return there, ExportReport(str(there), 60, 4096, 2e-6, 1e-4, 64, hashes)


def _search(job: JobSpec) -> str:
    space = {"space.optim.lr.low": 1e-4, "space.optim.lr.high": 1e-1, "space.plan.data.low": 1}
    tags = {"rayline.search": "optuna"}
    with open_run(job.tracking, name="rates", params=space, tags=tags) as search:
        ids = []
        for number, (rate, state) in enumerate(
            [(1e-2, "finished"), (1e-4, "stopped_early"), (1e-3, "finished")]
        ):
            changed = job.changed({"optim.lr": rate, "name": f"rates-{number}"})
            with open_run(
                job.tracking,
                name=changed.name,
                params=changed.flat(),
                tags={"rayline.trial": state},
                parent_run_id=search.run_id,
            ) as trial:
                for step in range(1, 4):
                    trial.observe(report(step, loss=1 / step + rate))
            ids.append(trial.run_id)
        search.tag("rayline.best_run", ids[2])
        search.log_text("<!doctype html><title>rates</title><p>drawn</p>", "report.html")
    return search.run_id


@pytest.fixture(scope="session")
def house() -> Iterator[House]:
    house = House()
    yield house
    house.close()


@pytest.fixture(scope="session")
def client(house: House, recorded: Recorded) -> HousedClient:
    """Over a gateway with two scripted versions, of which the second gets 10 %."""
    client = HousedClient(house, recorded.tracking)
    client.begin(1, ChattingEngine("one", token_s=0.05))
    client.begin(2, ChattingEngine("two", token_s=0.05))
    return client


@pytest.fixture(scope="session")
def model_key(client: HousedClient) -> str:
    """An API key of that gateway."""
    secret = open_keys(client.store).create(KeySpec(name="playground", team="tests")).secret
    # Until every gateway knows it.
    time.sleep(1.0)
    return secret


@pytest.fixture(scope="session")
def settings(client: HousedClient) -> ConsoleSettings:
    return ConsoleSettings(
        tracking=client.tracking,
        store=client.store,
        url=f"{client.house.url}/v1",
        # Named so that the page shows what the house has; nobody joins it.
        address="10.0.0.1:6379",
    )

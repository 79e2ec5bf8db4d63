"""The scripts that train, from top to bottom on one Ray, with few steps."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray

from rayline import Client, JobSpec
from rayline.spec import TrackingSpec
from support.scripts import main_of

pytestmark = [pytest.mark.ray, pytest.mark.timeout(120)]


@pytest.fixture(scope="module", autouse=True)
def local_ray() -> Iterator[None]:
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    yield
    ray.shutdown()


def test_pretraining_learns_and_registers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--folder", str(tmp_path), "--steps", "8", "--set", "data.sequence_tokens=32"]
    assert main_of("pretrain_from_scratch")(words) == 0
    shown = capsys.readouterr().out
    assert "658,560 parameters" in shown
    assert shown.count("held-out loss") >= 4
    assert "registry:pretrained@latest" in shown


def test_the_best_of_a_search_is_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main_of("search")(["--folder", str(tmp_path), "--trials", "2", "--steps", "4"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("trial ") >= 2
    best = JobSpec.load(shown.partition("best spec: ")[2].partition("\n")[0])
    client = Client(tracking=TrackingSpec(uri=best.tracking.uri))
    run = client.run(shown.rpartition("run ")[2].partition(",")[0])
    assert run.summary.status == "finished"
    assert float(run.params["optim.lr"]) == best.optim.lr

"""The doors to a cluster, on one of made-up nodes: its notebook brings it up, the examples of the
client and the notebook of jobs use it, and the example of `down` ends it. In this order."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from rayline import Client
from rayline.launch.clusters.made_up_cluster import MARK
from rayline.sdk.clusters import Clusters
from rayline.spec import ClusterSpec
from support.docs import run_example
from support.notebooks import run_notebook

pytestmark = [pytest.mark.ray, pytest.mark.timeout(180)]
REPOSITORY = Path(__file__).resolve().parents[2]
BEFORE_DOWN: list[Any] = [
    Clusters.status,
    Client.submit,
    Client.jobs,
    Client.status,
    Client.wait,
    Client.logs,
    Client.stop,
]


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """An empty folder that is the home too, where clusters are remembered; left with none up."""
    place = Path(tempfile.mkdtemp(prefix="door-"))
    patch = pytest.MonkeyPatch()
    patch.setenv("HOME", str(place))
    patch.delenv("RAY_ADDRESS", raising=False)
    patch.setenv("RAY_AUTH_MODE", "disabled")
    patch.chdir(place)
    (place / "jobs" / "specs").mkdir(parents=True)
    (place / "cluster").symlink_to(REPOSITORY / "cluster")
    quickstart = REPOSITORY / "jobs" / "specs" / "quickstart.yaml"
    shutil.copyfile(quickstart, place / "jobs" / "specs" / "quickstart.yaml")
    # The examples of the client are about sending and watching: the job itself is one line.
    (place / "jobs" / "train.py").write_text("print('trained')\n")
    yield place
    for spec in (ClusterSpec.load(REPOSITORY / "cluster" / "specs" / "fake.yaml"),):
        Client().cluster.down(spec)
    patch.undo()
    shutil.rmtree(place, ignore_errors=True)


@pytest.fixture(scope="module")
def names(folder: Path) -> dict[str, Any]:
    """What one example leaves for the next."""
    return {"ClusterSpec": ClusterSpec, "client": Client(), "log": []}


def test_the_notebook_of_clusters_brings_one_up(folder: Path) -> None:
    shown = run_notebook("cluster.ipynb", folder, RAYLINE_SPECS=str(folder))
    assert "cluster/on-premises" in shown
    assert "(0, 16) GPUs" in shown
    assert "did you mean 'region'?" in shown
    assert "head 1.0 CPUs" in shown


def test_up_finds_what_is_up(folder: Path, names: dict[str, Any]) -> None:
    run_example(Clusters.up, names)
    names["client"] = Client(jobs_url=names["reached"].dashboard)


@pytest.mark.parametrize("method", BEFORE_DOWN, ids=lambda method: method.__qualname__)
def test_an_example_of_the_client_runs(method: Any, names: dict[str, Any]) -> None:
    run_example(method, names)


def test_the_notebook_of_jobs_trains_on_it(folder: Path, names: dict[str, Any]) -> None:
    here = folder / "job"
    here.mkdir()
    shown = run_notebook("job.ipynb", here, RAYLINE_JOBS_URL=names["reached"].dashboard)
    assert "step 5 loss " in shown
    assert "('succeeded', 0)" in shown
    assert "<table>" in shown


def test_down_ends_it_and_leaves_nothing(names: dict[str, Any]) -> None:
    run_example(Clusters.down, names)
    assert marked() == []


def marked() -> list[str]:
    """Processes of this test's clusters that are alive."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        try:
            environment = process.environ()
        except psutil.Error:
            continue
        if MARK in environment and environment.get("HOME") == os.environ["HOME"]:
            found.append(" ".join(process.info["cmdline"] or []))
    return found

"""One simulated cluster for each module that asks for it, and jobs that run on it."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

from rayline.models.tiny import write_tiny_model
from rayline.spec import JobSpec

MakeJob = Callable[..., JobSpec]


@pytest.fixture
def make_job(tmp_path: Path) -> MakeJob:
    """make_job(**{"plan.tensor": 2}) is a job of 3 steps in a folder of its own."""
    (tmp_path / "runs").mkdir()
    job = JobSpec.parse(
        {
            "name": "gang",
            "model": {"directory": str(tmp_path / "model")},
            "steps": 3,
            "data": {"kind": "text", "files": ["a.txt"], "sequence_tokens": 8},
            "batch": {"sequences": 12},
            "optim": {"lr": 1e-3},
            "output_dir": str(tmp_path / "runs"),
        }
    )
    return lambda **changes: job.changed(changes)


@pytest.fixture
def text_job(tmp_path: Path) -> JobSpec:
    """A job that can run: a small model on numbers, one worker, in a folder of its own."""
    text = tmp_path / "text.jsonl"
    text.write_text("\n".join(json.dumps({"text": f"{n} and {n * n}"}) for n in range(900)))
    return JobSpec.parse(
        {
            "name": "small",
            "model": {"directory": str(write_tiny_model(tmp_path / "model"))},
            "steps": 10,
            "data": {"kind": "text", "files": [str(text)], "sequence_tokens": 32},
            "batch": {"sequences": 4},
            "optim": {"lr": 1e-3},
            "resources": {"device": "cpu"},
            "output_dir": str(tmp_path / "run"),
            "tracking": {"uri": f"sqlite:///{tmp_path}/mlflow.db"},
        }
    )


@pytest.fixture(scope="module")
def three_nodes() -> Iterator[Any]:
    """Three simulated nodes with 4 CPUs and 3 GPUs that only Ray believes in; yields Ray's
    `Cluster`."""
    import ray
    from ray.cluster_utils import Cluster

    from support import rank_functions

    ray.cloudpickle.register_pickle_by_value(rank_functions)
    cluster = Cluster()
    try:
        for _ in range(3):
            cluster.add_node(num_cpus=4, num_gpus=3, include_dashboard=False)
        ray.init(address=cluster.address, log_to_driver=False)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()
        ray.cloudpickle.unregister_pickle_by_value(rank_functions)


@pytest.fixture
def mortal_nodes() -> Iterator[Any]:
    """A simulated cluster whose nodes, which the test adds, may be lost; yields Ray's `Cluster`.
    The driver stands on a head without CPUs: with the driver's own node its job ends, and Ray takes
    back the job's placement groups."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster()
    try:
        cluster.add_node(num_cpus=0, include_dashboard=False)
        ray.init(address=cluster.address, log_to_driver=False)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()

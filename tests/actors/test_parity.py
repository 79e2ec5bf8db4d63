"""Eight workers of a Ray gang, all three axes, against one worker: the same numbers."""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
import torch.distributed as dist
from ray import cloudpickle
from safetensors.torch import load_file, save_file

from rayline.actors import train
from rayline.data import collate, load_dataset, share
from rayline.models.tiny import write_tiny_model
from rayline.spec import JobSpec, TrainResult, WorkerContext
from rayline.train.build import build_engine
from rayline.train.engine import Batch
from rayline.train.link import Link
from rayline.train.loop import run_rank
from rayline.train.process_group import joined
from support import engine_gang
from support.engine_gang import free_port

pytestmark = pytest.mark.ray

# Workers have no tests on their path: what they run from this file travels as it is.
cloudpickle.register_pickle_by_value(sys.modules[__name__])
cloudpickle.register_pickle_by_value(engine_gang)


@pytest.fixture
def local_ray() -> Iterator[None]:
    """The Ray that `train` starts where there is none, ended afterwards."""
    yield
    ray.shutdown()


def gradients_then_train(
    job: JobSpec,
    context: WorkerContext,
    model_directory: Path,
    link: Link,
) -> TrainResult:
    """The first step's gradients, kept in the job's folder, then the job itself."""
    dataset = load_dataset(job.data, model_directory)
    indices = dataset.order(job.seed).indices(0, job.batch.sequences)
    mine = share(indices, context.coordinate.data, job.plan.data)
    with joined(context) as device:
        engine = build_engine(job, context, model_directory, device)
        gradients = dict(engine.gradients(Batch(*collate(dataset, mine))))
        if context.rank == 0:
            save_file(gradients, str(Path(job.directory) / "gradients.safetensors"))
        # A rendezvous is met once: the job itself gets a port of its own.
        port = [free_port()]
        dist.broadcast_object_list(port, src=0)
    again = replace(context, master_port=port[0])
    return run_rank(job, again, model_directory, link)


def run(tmp_path: Path, name: str, plan: dict[str, Any]) -> tuple[dict[str, torch.Tensor], list]:
    job = JobSpec.parse(
        {
            "name": name,
            "model": {"directory": str(tmp_path / "model")},
            "steps": 10,
            "data": {
                "kind": "text",
                "files": [str(tmp_path / "text.jsonl")],
                "sequence_tokens": 32,
            },
            "batch": {"sequences": 8},
            "optim": {"lr": 3e-3, "weight_decay": 0.1, "warmup_steps": 2},
            "plan": plan,
            "resources": {"cpus_per_worker": 0.1, "device": "cpu"},
            "tracking": {"uri": f"sqlite:///{tmp_path}/mlflow.db"},
            "output_dir": str(tmp_path / name),
        }
    )
    losses: list[float] = []
    train(
        job,
        observers=[lambda report: losses.append(report.loss)],
        rank_function=gradients_then_train,
    )
    return load_file(tmp_path / name / "gradients.safetensors"), losses


def test_eight_workers_equal_one(local_ray: None, tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "model", tied=True)
    lines = [f'{{"text": "line {n}: {n * 7919 % 1000} is {n % 13} of {n % 7}"}}' for n in range(80)]
    (tmp_path / "text.jsonl").write_text("\n".join(lines))
    expected, losses = run(tmp_path, "one", {"microbatches": 2})
    plan = {"data": 2, "tensor": 2, "pipeline": 2, "microbatches": 2}
    found, gang_losses = run(tmp_path, "eight", plan)
    assert len(losses) == 10
    assert gang_losses == pytest.approx(losses, abs=1e-5)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        error = (found[name] - gradient).norm() / gradient.norm()
        assert error < 1e-5, f"gradient of {name} is off by {error:.1e}"

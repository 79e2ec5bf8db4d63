"""The hand-written script under Ray Train v2, which reports each step as its examples do."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import plain_pytorch
import ray
import ray.train
import torch
from ray import cloudpickle
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from workload import Record, Work


def worker(settings: dict[str, Any]) -> None:
    """One worker's training."""
    torch.set_num_threads(1)
    record = Record()

    def report(loss: float) -> None:
        record.add(loss)
        ray.train.report({"loss": loss})

    plain_pytorch.train(Work.load(settings["work"]), report)
    if ray.train.get_context().get_world_rank() == 0:
        record.save(settings["out"])


def main() -> None:
    """The driver."""
    import workload

    for module in (workload, plain_pytorch):
        cloudpickle.register_pickle_by_value(module)
    work = Work.load(sys.argv[1])
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    trainer = TorchTrainer(
        worker,
        train_loop_config={"work": work.folder, "out": sys.argv[2]},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(
            num_workers=work.workers, resources_per_worker={"CPU": 0.4}, use_gpu=False
        ),
        run_config=RunConfig(storage_path=str(Path(work.folder) / "ray_train")),
    )
    trainer.fit()
    ray.shutdown()


if __name__ == "__main__":
    main()

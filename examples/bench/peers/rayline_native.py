"""rayline's native engine: started by torchrun as the peers are, or as a gang on Ray."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

import torch
from workload import Record, Work

from rayline.spec import JobSpec, StepReport, WorkerContext


class EnoughError(Exception):
    """The last step is done."""


def job(work: Work, name: str) -> JobSpec:
    """The work as a spec; its text is the one that tokens.pt was made from."""
    return JobSpec.parse(
        {
            "name": name,
            "model": {"directory": work.model},
            "steps": work.steps,
            "data": {
                "kind": "text",
                "files": [f"{work.folder}/text.jsonl"],
                "sequence_tokens": work.tokens().shape[-1] - 1,
            },
            "batch": {"sequences": work.sequences},
            "optim": {
                "lr": work.lr,
                "schedule": {"kind": "constant"},
                "betas": [0.9, 0.999],
                "weight_decay": 0.0,
                "clip_grad_norm": work.clip_grad_norm,
            },
            "plan": {"data": work.workers, "zero_stage": work.zero_stage},
            "precision": work.precision,
            "resources": {"device": work.device, "cpus_per_worker": 0.4},
            "tracking": {"uri": f"sqlite:///{work.folder}/mlflow.db"},
            "output_dir": f"{work.folder}/{name}",
        }
    )


def under_torchrun(work: Work, out: str) -> None:
    """One rank that torchrun started."""
    from rayline.train.link import Link
    from rayline.train.loop import run_rank

    if work.device == "cpu":
        torch.set_num_threads(1)
    spec, rank, record = job(work, Path(out).stem), int(os.environ["RANK"]), Record()
    context = WorkerContext(
        rank=rank,
        world_size=work.workers,
        local_rank=int(os.environ["LOCAL_RANK"]),
        coordinate=spec.plan.coordinate(rank),
        master_address=os.environ["MASTER_ADDR"],
        master_port=int(os.environ["MASTER_PORT"]),
        device="cuda" if work.device == "gpu" else "cpu",
    )

    def observe(report: StepReport) -> None:
        record.add(report.loss)
        if report.step == work.steps and work.workers == 1:
            raise EnoughError

    # Alone, a rank need not export: with a large model that takes longer than all its steps.
    with suppress(EnoughError):
        run_rank(spec, context, Path(work.model), Link(observe, lambda: False))
    if rank == 0:
        record.save(out)


def on_ray(work: Work, out: str) -> None:
    """The driver of a gang."""
    import ray

    from rayline.actors import train

    record = Record()
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    train(job(work, Path(out).stem), observers=[lambda report: record.add(report.loss)])
    ray.shutdown()
    record.save(out)


if __name__ == "__main__":
    start = under_torchrun if "RANK" in os.environ else on_ray
    start(Work.load(sys.argv[1]), sys.argv[2])

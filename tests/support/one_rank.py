"""A whole job in this process: one rank, no Ray."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from rayline.spec import JobSpec, StepReport, TrainResult, WorkerContext, Yardstick
from rayline.train.link import Link
from rayline.train.loop import run_rank
from support.engine_gang import free_port


def small_job(folder: Path, name: str, model: Path) -> JobSpec:
    """Twelve steps on a few lines of text, all below `folder`."""
    lines = [json.dumps({"text": f"{n} times seven is {7 * n}"}) for n in range(120)]
    (folder / "text.jsonl").write_text("\n".join(lines))
    return JobSpec.parse(
        {
            "name": name,
            "model": {"directory": str(model)},
            "steps": 12,
            "data": {
                "kind": "text",
                "files": [str(folder / "text.jsonl")],
                "sequence_tokens": 24,
            },
            "batch": {"sequences": 4},
            "optim": {"lr": 5e-3, "warmup_steps": 3},
            "output_dir": str(folder / name),
        }
    )


def run_alone(
    job: JobSpec,
    model: Path,
    stop: Callable[[], bool] = lambda: False,
    yardstick: Yardstick | None = None,
    device: Literal["cpu", "cuda"] = "cpu",
) -> tuple[TrainResult, list[StepReport]]:
    """Run the job to its end: what came of it, and every step's report."""
    context = WorkerContext(
        rank=0,
        world_size=1,
        local_rank=0,
        coordinate=job.plan.coordinate(0),
        master_address="127.0.0.1",
        master_port=free_port(),
        device=device,
    )
    reports: list[StepReport] = []
    return run_rank(job, context, model, Link(reports.append, stop), yardstick), reports

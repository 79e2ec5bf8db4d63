"""Gangs of gloo processes that run tasks on an engine."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file

from rayline.spec import JobSpec

RANK_PROGRAM = Path(__file__).with_name("engine_rank.py")
TIMEOUT_S = 280


@dataclass
class Task:
    """What one gang is to do: load, gradients of step 1, steps first..last, save."""

    job: JobSpec
    model: Path
    first: int = 1
    last: int = 0
    gradients: bool = False
    load: Path | None = None
    save: Path | None = None
    out: Path = field(default=Path(), init=False)

    def as_json(self) -> dict[str, object]:
        return {
            "job": self.job.model_dump(mode="json"),
            "model": str(self.model),
            "first": self.first,
            "last": self.last,
            "gradients": self.gradients,
            "load": str(self.load) if self.load else None,
            "save": str(self.save) if self.save else None,
            "out": str(self.out),
        }

    @property
    def losses(self) -> list[str]:
        """The loss of every step, in hexadecimal: every bit counts."""
        found: list[str] = json.loads((self.out / "results.json").read_text())["losses"]
        return found

    @property
    def norms(self) -> list[float]:
        found: list[float] = json.loads((self.out / "results.json").read_text())["norms"]
        return found

    def tensors(self, kind: str) -> dict[str, torch.Tensor]:
        return load_file(self.out / f"{kind}.safetensors")


def free_port() -> int:
    """A port of this machine that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _start(rank: int, world: int, port: int, tasks: Path) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "RANK": str(rank),
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.Popen(
        [sys.executable, str(RANK_PROGRAM), str(tasks)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run_gang(directory: Path, tasks: list[Task]) -> None:
    """Run tasks of one world size, one after another, in one gang of processes."""
    (world,) = {task.job.plan.world_size for task in tasks}
    for number, task in enumerate(tasks):
        task.out = directory / f"task-{number}"
        task.out.mkdir(parents=True)
    listing = directory / "tasks.json"
    listing.write_text(json.dumps([task.as_json() for task in tasks]))
    port = free_port()
    processes = [_start(rank, world, port, listing) for rank in range(world)]
    try:
        for rank, process in enumerate(processes):
            output, _ = process.communicate(timeout=TIMEOUT_S)
            assert process.returncode == 0, f"rank {rank}:\n{output[-6000:]}"
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()

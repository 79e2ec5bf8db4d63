"""Gangs of gloo processes that run tasks on an engine.

Ranks are forked from one server process that has imported torch and the engine already: importing
costs seconds a process, a fork milliseconds, and ranks share the memory of what was imported.
"""

import json
import multiprocessing
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file

from rayline.spec import JobSpec

TIMEOUT_S = 280
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    ["support.engine_rank", "rayline.train.native", "rayline.train.deepspeed_engine"]
)


@dataclass
class Task:
    """What one gang is to do: load, gradients of step 1, evaluate, steps first..last with an
    evaluation after each, save."""

    job: JobSpec
    model: Path
    first: int = 1
    last: int = 0
    gradients: bool = False
    evaluate: bool = False
    load: Path | None = None
    save: Path | None = None
    save_at: int = 0
    """The step after which `save` is written, and training goes on; 0 for the last one."""
    fault: str | None = None
    """A fault out of `support.faults`, planted at `fault_step`."""
    fault_step: int = 0
    out: Path = field(default=Path(), init=False)

    def as_json(self) -> dict[str, object]:
        return {
            "job": self.job.model_dump(mode="json"),
            "model": str(self.model),
            "first": self.first,
            "last": self.last,
            "gradients": self.gradients,
            "evaluate": self.evaluate,
            "load": str(self.load) if self.load else None,
            "save": str(self.save) if self.save else None,
            "save_at": self.save_at or self.last,
            "fault": self.fault,
            "fault_step": self.fault_step,
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

    @property
    def skipped(self) -> list[str]:
        """Why each step was skipped; empty where it was applied."""
        found: list[str] = json.loads((self.out / "results.json").read_text())["skipped"]
        return found

    @property
    def routing(self) -> list[tuple[float, float | None]]:
        """Largest load and balance loss of each step of a mixture of experts."""
        found = json.loads((self.out / "results.json").read_text())["routing"]
        return [(load, balance) for load, balance in found]

    @property
    def dropped(self) -> list[tuple[int | None, int]]:
        """Choices of experts that were dropped in each step, and all choices."""
        found = json.loads((self.out / "results.json").read_text())["dropped"]
        return [(dropped, choices) for dropped, choices in found]

    @property
    def evaluations(self) -> list[tuple[float, int]]:
        """Sum of losses and number of targets, as every rank got them: at first, and after each
        step."""
        found = json.loads((self.out / "results.json").read_text())["evaluations"]
        return [(float.fromhex(loss), tokens) for loss, tokens in found]

    def tensors(self, kind: str) -> dict[str, torch.Tensor]:
        return load_file(self.out / f"{kind}.safetensors")


def free_port() -> int:
    """A port of this machine that nothing listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_gang(directory: Path, tasks: list[Task]) -> None:
    """Run tasks of one world size, one after another, in one gang of processes."""
    # Only ranks need it, and it imports the engine.
    from support.engine_rank import run_tasks

    (world,) = {task.job.plan.world_size for task in tasks}
    for number, task in enumerate(tasks):
        task.out = directory / f"task-{number}"
        task.out.mkdir(parents=True)
    listing = directory / "tasks.json"
    listing.write_text(json.dumps([task.as_json() for task in tasks]))
    run_ranks(directory, world, run_tasks, listing)


def run_ranks(directory: Path, world: int, life: Callable[..., None], what: Path) -> None:
    """Fork `world` ranks and wait until all are done; each runs life(rank, world, port, what, log),
    the log being its own, below `directory`."""
    port = free_port()
    logs = [directory / f"rank-{rank}.log" for rank in range(world)]
    ranks = [
        _FORKS.Process(target=life, args=(rank, world, port, what, log))
        for rank, log in enumerate(logs)
    ]
    deadline_s = time.monotonic() + TIMEOUT_S
    try:
        for process in ranks:
            process.start()
        while any(process.is_alive() for process in ranks) and time.monotonic() < deadline_s:
            if any(process.exitcode for process in ranks):
                break
            time.sleep(0.02)
        # Ranks that lost a neighbour end by themselves a moment after the one that raised.
        for process in ranks:
            process.join(timeout=5 if any(p.exitcode for p in ranks) else 0)
        for rank, process in enumerate(ranks):
            said = logs[rank].read_text() if logs[rank].exists() else "nothing"
            assert process.exitcode == 0, f"rank {rank} ({process.exitcode}):\n{said[-6000:]}"
    finally:
        for process in ranks:
            if process.is_alive():
                process.kill()
            process.join()

"""A worker of Ray Train v2 killed in mid-step: seconds from the kill to the next finished step.

    python ray_train_recovery.py OUT.json

Four gloo workers train a small network with DDP and report with a checkpoint every step, so that
nothing but the step in flight has to be done again. Rank 2 kills itself once, in step 20.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train import Checkpoint, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, prepare_model
from torch import nn

STEPS, KILLED_AT, KILLED_RANK, STEP_S = 40, 20, 2, 0.1


def worker(settings: dict[str, Any]) -> None:
    """One worker's training, from the newest checkpoint if there is one."""
    torch.set_num_threads(1)
    folder = Path(settings["folder"])
    context = ray.train.get_context()
    rank = context.get_world_rank()
    model = prepare_model(nn.Sequential(nn.Linear(256, 1024), nn.ReLU(), nn.Linear(1024, 256)))
    optimizer = torch.optim.AdamW(model.parameters())
    first = 1
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is not None:
        with checkpoint.as_directory() as there:
            state = torch.load(Path(there) / "state.pt", weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"] + 1
    for step in range(first, STEPS + 1):
        began_s = time.perf_counter()
        loss = model(torch.ones(64, 256)).square().mean()
        note = folder / "killed"
        if step == KILLED_AT and rank == KILLED_RANK and not note.exists():
            note.write_text(repr(time.time()))
            os.kill(os.getpid(), signal.SIGKILL)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        time.sleep(max(0.0, STEP_S - (time.perf_counter() - began_s)))
        if rank == 0:
            with (folder / "steps").open("a") as file:
                file.write(f"{step} {time.time()!r}\n")
        with tempfile.TemporaryDirectory() as temporary:
            state = {
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": step,
            }
            torch.save(state, Path(temporary) / "state.pt")
            kept = Checkpoint.from_directory(temporary) if rank == 0 else None
            ray.train.report({"loss": loss.item()}, checkpoint=kept)


def main() -> None:
    """The driver."""
    with tempfile.TemporaryDirectory() as temporary:
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        trainer = TorchTrainer(
            worker,
            train_loop_config={"folder": temporary},
            torch_config=TorchConfig(backend="gloo"),
            scaling_config=ScalingConfig(
                num_workers=4, resources_per_worker={"CPU": 0.4}, use_gpu=False
            ),
            run_config=RunConfig(
                storage_path=f"{temporary}/runs", failure_config=FailureConfig(max_failures=3)
            ),
        )
        trainer.fit()
        ray.shutdown()
        killed_s = float((Path(temporary) / "killed").read_text())
        lines = (Path(temporary) / "steps").read_text().split("\n")[:-1]
        steps = [(int(line.split()[0]), float(line.split()[1])) for line in lines]
        step, next_s = next((step, at_s) for step, at_s in steps if at_s > killed_s)
        found = {
            "kill_to_next_step_s": next_s - killed_s,
            "next_step": step,
            "steps_done_again": KILLED_AT - step,
        }
    Path(sys.argv[1]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()

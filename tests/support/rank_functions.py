"""What ranks run in tests of the gang: small functions in place of training, in real Ray actors.

They are sent to the workers by value, since workers do not import from tests/.
"""

import json
import logging
import os
import signal
import socket
import time
from pathlib import Path

import ray

from rayline.errors import SpecError
from rayline.spec import JobSpec, StepReport, TrainResult, WorkerContext
from rayline.train.link import Link


def report(step: int) -> StepReport:
    return StepReport(
        step=step,
        loss=1.0 / step,
        grad_norm=1.0,
        lr=1e-3,
        tokens=8,
        processed_tokens=16,
        seconds=0.01,
        memory_bytes=1,
    )


def result(first_step: int, last_step: int, steps: int) -> TrainResult:
    return TrainResult(first_step, last_step, last_step >= steps, None, None)


def steps(job: JobSpec, context: WorkerContext, _model: Path, link: Link) -> TrainResult:
    """All steps at once, with a word printed, logged and written below Python."""
    print(f"printed by {context.rank}\nsecond line", flush=True)
    logging.getLogger("user.code").info("logged by %d", context.rank)
    os.write(2, b"native line\n")
    for step in range(1, job.steps + 1):
        if context.rank == 0:
            link.observe(report(step))
    place = {
        "rank": context.rank,
        "node": ray.get_runtime_context().get_node_id(),
        "local_rank": context.local_rank,
        "device": context.device,
        "threads": os.environ["OMP_NUM_THREADS"],
        "gpus": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
        "master": [context.master_address, context.master_port],
        "pid": os.getpid(),
    }
    Path(job.directory, f"place-{context.rank}.json").write_text(json.dumps(place))
    if context.rank == 0:
        # Rank 0 can listen where the others are told to find it.
        with socket.create_server((context.master_address, context.master_port)):
            pass
    return result(1, job.steps, job.steps)


def raise_on_rank_1(job: JobSpec, context: WorkerContext, _model: Path, link: Link) -> TrainResult:
    """Rank 1 raises; its neighbour sees the connection break first; the others never return."""
    if context.rank == 0:
        raise RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [::1]:1234")
    if context.rank == 1:
        time.sleep(0.6)
        raise ZeroDivisionError("the user's own mistake")
    time.sleep(600)
    return result(1, 1, 1)


def refuse(job: JobSpec, context: WorkerContext, _model: Path, link: Link) -> TrainResult:
    raise SpecError("data.files", "no such file", value="nothing.jsonl", fix="give another")


def killed_once(job: JobSpec, context: WorkerContext, _model: Path, link: Link) -> TrainResult:
    """Rank 1 is killed in its first life; in the second everything goes on from step 3."""
    lives = Path(job.directory, f"lives-{context.rank}")
    first_life = not lives.exists()
    lives.write_text("1")
    if not first_life:
        if context.rank == 0:
            link.observe(report(3))
        return result(3, 3, job.steps)
    if context.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(600)
    return result(1, 1, 1)


def lost_with_its_node(
    job: JobSpec, context: WorkerContext, _model: Path, link: Link
) -> TrainResult:
    """In its first life every rank waits for ever; in the second it is done."""
    node = ray.get_runtime_context().get_node_id()
    lives = Path(job.directory, f"nodes-{context.rank}")
    with lives.open("a") as file:
        file.write(f"{node}\n")
    if len(lives.read_text().split()) > 1:
        return result(1, job.steps, job.steps)
    time.sleep(600)
    return result(1, 1, 1)


def until_stopped(job: JobSpec, context: WorkerContext, _model: Path, link: Link) -> TrainResult:
    """Steps without end, until asked to stop."""
    Path(job.directory, f"pid-{context.rank}").write_text(str(os.getpid()))
    step = 0
    while not link.stop_requested():
        step += 1
        if context.rank == 0:
            link.observe(report(step))
        time.sleep(0.05)
    return result(1, step, step + 1)


def moved(job: JobSpec, context: WorkerContext, _model: Path, link: Link) -> TrainResult:
    """In the gang's first life steps until it is asked to stop; in the second it is done."""
    node = ray.get_runtime_context().get_node_id()
    with Path(job.directory, f"nodes-{context.rank}").open("a") as file:
        file.write(f"{node} {context.has_stepped}\n")
    if context.epoch > 1:
        return result(job.steps, job.steps, job.steps)
    step = 0
    while not link.stop_requested():
        step += 1
        if context.rank == 0:
            link.observe(report(step))
        time.sleep(0.05)
    return result(1, step, step + 1)

"""What one rank of a trial does: first weights and gradients, a run without a break, and the same
run stopped, saved and resumed. All by the engine and the loop that train a job.

    gradients ── run_rank to STEPS ── run_rank to RESUME_AFTER ── run_rank to STEPS
"""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence

import torch
from safetensors.torch import save_file

from rayline.data import collate, load_dataset, share
from rayline.spec import StepReport, WorkerContext
from rayline.train.build import EngineBuilder, build_engine
from rayline.train.engine import Batch
from rayline.train.link import Link
from rayline.train.loop import run_rank
from rayline.train.process_group import joined
from rayline.train.verify.trial import RESUME_AFTER, STEPS, Lived, Trial, verified_job

_POLL_S = 0.01


def live(trials: Sequence[Trial], rank: int) -> list[Lived]:
    """One rank of every trial, one after another; all trials have one world size. Every rank calls
    it, each in a process of its own. Raises what the engine or the loop raises."""
    torch.set_num_threads(1)
    return [_live(trial, rank) for trial in trials]


def _live(trial: Trial, rank: int) -> Lived:
    """From the trial's first rendezvous to its last."""
    build: EngineBuilder = trial.build or build_engine
    _keep_start(trial, _context(trial, rank, "gradients"), build)
    unbroken: list[StepReport] = []
    resumed: list[StepReport] = []
    parts = (
        ("unbroken", STEPS, unbroken),
        ("resumed", RESUME_AFTER, resumed),
        ("resumed", STEPS, resumed),
    )
    for run, stop_after_step, reports in parts:
        context = _context(trial, rank, f"{run}-{stop_after_step}")
        job = trial.run_job(run, stop_after_step)
        link = Link(reports.append, lambda: False)
        run_rank(job, context, trial.model, link, build=build)
    return Lived(tuple(unbroken), tuple(resumed))


def _context(trial: Trial, rank: int, meeting: str) -> WorkerContext:
    plan = trial.job.plan
    return WorkerContext(
        rank=rank,
        world_size=plan.world_size,
        local_rank=rank,
        coordinate=plan.coordinate(rank),
        master_address="127.0.0.1",
        master_port=_port(trial, rank, meeting),
        device="cpu",
        collective_timeout_s=trial.collective_timeout_s,
    )


def _port(trial: Trial, rank: int, meeting: str) -> int:
    """A port of this machine for one meeting of the ranks. Rank 0 looks for it just before it
    listens there, for gloo takes free ports too, and leaves it in a file."""
    file = trial.folder / f"port-{meeting}"
    if rank == 0:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        written = file.with_suffix(".writing")
        written.write_text(str(port))
        written.rename(file)
        return port
    deadline_s = time.monotonic() + trial.collective_timeout_s
    while not file.exists():
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"wait timeout: rank 0 did not come to {meeting}")
        time.sleep(_POLL_S)
    return int(file.read_text())


def _keep_start(trial: Trial, context: WorkerContext, build: EngineBuilder) -> None:
    job = verified_job(trial.job)
    dataset = load_dataset(job.data, trial.model)
    indices = dataset.order(job.seed).indices(0, job.batch.sequences_at(1))
    mine = share(indices, context.coordinate.data, job.plan.data)
    with joined(context) as device:
        engine = build(job, context, trial.model, device)
        # Copies: an engine may hand out what it goes on working with.
        start = {name: weight.clone() for name, weight in engine.weights()}
        gradients = {
            name: gradient.clone()
            for name, gradient in engine.gradients(Batch(*collate(dataset, mine)))
        }
    if context.rank == 0:
        save_file(start, str(trial.start))
        save_file(gradients, str(trial.gradients))

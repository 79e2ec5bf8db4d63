"""What one rank of a trial does: the first step's gradients, a run without a break, and the same
run stopped, saved and resumed. All by the engine and the loop that train a job.

    gradients ── run_rank to STEPS ── run_rank to RESUME_AFTER ── run_rank to STEPS
"""

from __future__ import annotations

import torch
from safetensors.torch import save_file

from rayline.data import SampleOrder, collate, load_dataset, share
from rayline.spec import StepReport, WorkerContext
from rayline.train.build import EngineBuilder, build_engine
from rayline.train.engine import Batch
from rayline.train.loop import run_rank
from rayline.train.process_group import joined
from rayline.train.verify.trial import RESUME_AFTER, STEPS, Lived, Trial, verified_job


def live(trial: Trial, rank: int) -> Lived:
    """One rank of the trial, from its first rendezvous to its last; every rank calls it, each in a
    process of its own. Raises what the engine or the loop raises."""
    torch.set_num_threads(1)
    build: EngineBuilder = trial.build or build_engine
    contexts = [_context(trial, rank, port) for port in trial.ports]
    _keep_gradients(trial, contexts[0], build)
    unbroken: list[StepReport] = []
    resumed: list[StepReport] = []
    parts = (
        ("unbroken", STEPS, unbroken),
        ("resumed", RESUME_AFTER, resumed),
        ("resumed", STEPS, resumed),
    )
    for (run, stop_after_step, reports), context in zip(parts, contexts[1:], strict=True):
        job = trial.run_job(run, stop_after_step)
        run_rank(job, context, trial.model, reports.append, lambda: False, build=build)
    return Lived(tuple(unbroken), tuple(resumed))


def live_all(trials: list[Trial], rank: int) -> list[Lived]:
    """Several trials of one world size, one after another in the same processes."""
    return [live(trial, rank) for trial in trials]


def _context(trial: Trial, rank: int, port: int) -> WorkerContext:
    plan = trial.job.plan
    return WorkerContext(
        rank=rank,
        world_size=plan.world_size,
        local_rank=rank,
        coordinate=plan.coordinate(rank),
        master_address="127.0.0.1",
        master_port=port,
        device="cpu",
        collective_timeout_s=trial.collective_timeout_s,
    )


def _keep_gradients(trial: Trial, context: WorkerContext, build: EngineBuilder) -> None:
    job = verified_job(trial.job)
    dataset = load_dataset(job.data, trial.model)
    indices = SampleOrder(len(dataset), job.seed).indices(0, job.batch.sequences)
    mine = share(indices, context.coordinate.data, job.plan.data)
    with joined(context) as device:
        engine = build(job, context, trial.model, device)
        gradients = dict(engine.gradients(Batch(*collate(dataset, mine))))
    if context.rank == 0:
        whole = {name: gradient.contiguous() for name, gradient in gradients.items()}
        save_file(whole, str(trial.gradients))

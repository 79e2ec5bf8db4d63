"""One rank of engines under test, as a process of its own.

Started by `engine_gang.run_gang` with a JSON list of tasks, done one after another in one process
group. Rank 0 writes what came out.
"""

import gc
import json
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from rayline import checkpoint
from rayline.models.stage import load_config
from rayline.spec import NO_TARGET, JobSpec, ModelShape, WorkerContext
from rayline.train.build import build_engine
from rayline.train.engine import Batch, Engine
from rayline.train.pace import Pace
from support import faults

EVALUATED = 77
"""The step whose batch is evaluated on; no test trains as far."""


def global_batch(job: JobSpec, vocab: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The whole batch of a step: random ids, with targets spread unevenly over the rows."""
    generator = torch.Generator().manual_seed(1000 + step)
    shape = (job.batch.sequences_at(step), job.data.sequence_tokens)
    ids = torch.randint(0, vocab, shape, generator=generator)
    labels = torch.randint(0, vocab, shape, generator=generator)
    for row in range(shape[0]):
        labels[row, : (row * 5) % (shape[1] - 1)] = NO_TARGET
    return ids, labels


def packed_positions(job: JobSpec) -> torch.Tensor | None:
    """Each token's place in its document, of a whole batch: rows of documents of uneven lengths;
    None where sequences are one document each."""
    if job.data.packing == "dense":
        return None
    tokens = job.data.sequence_tokens
    rows = []
    for row in range(job.batch.sequences):
        cuts = [0, 1 + row % 3, 4 + row, tokens * 2 // 3 + row % 4, tokens]
        rows.append([n for begin, end in pairwise(cuts) for n in range(end - begin)])
    return torch.tensor(rows)


def context_of(job: JobSpec) -> WorkerContext:
    """This rank's place; the process group is there already, so nobody asks for its address."""
    rank = dist.get_rank()
    return WorkerContext(
        rank=rank,
        world_size=job.plan.world_size,
        local_rank=rank,
        coordinate=job.plan.coordinate(rank),
        master_address="127.0.0.1",
        master_port=0,
        device="cpu",
    )


def restore(engine: Engine, folder: Path, pace: Pace | None = None) -> None:
    manifest = checkpoint.read_manifest(folder)
    pieces = engine.pieces()
    checkpoint.read_into(folder, manifest, pieces)
    engine.restore(pieces, manifest.scalars)
    if pace is not None:
        pace.restore(manifest.scalars)


def save(
    engine: Engine,
    job: JobSpec,
    shape: ModelShape,
    root: Path,
    step: int,
    pace: Pace | None = None,
) -> None:
    header = checkpoint.CheckpointHeader(
        step=step,
        samples_consumed=job.batch.samples_after(step),
        plan=job.plan,
        engine=job.engine,
        spec_fingerprint=job.fingerprint(),
        model_fingerprint=checkpoint.model_fingerprint(shape),
        scalars={**engine.scalars(), **(pace.scalars() if pace else {})},
    )
    checkpoint.save(root, header, engine.pieces(), checkpoint.exchange(), keep=2)


def do(task: dict[str, Any]) -> None:
    job, model, out = JobSpec.parse(task["job"]), Path(task["model"]), Path(task["out"])
    context = context_of(job)
    config = load_config(model)
    engine = build_engine(job, context, model, torch.device("cpu"))
    pace = Pace(job)
    here = context.coordinate.data

    def share(step: int) -> Batch:
        ids, labels = global_batch(job, config.vocab_size, step)
        positions = packed_positions(job)
        place = None if positions is None else positions.chunk(job.plan.data)[here]
        return Batch(ids.chunk(job.plan.data)[here], labels.chunk(job.plan.data)[here], place)

    def keep(kind: str, tensors: dict[str, torch.Tensor]) -> None:
        if context.rank == 0:
            save_file(tensors, str(out / f"{kind}.safetensors"))

    if task["load"]:
        restore(engine, Path(task["load"]), pace)
    if task["gradients"]:
        keep("gradients", dict(engine.gradients(share(1))))
    losses, norms, skipped, evaluations, routing, dropped = [], [], [], [], [], []

    def evaluate() -> None:
        if task["evaluate"]:
            loss_sum, tokens = engine.evaluate(share(EVALUATED))
            told: list[object] = [None] * context.world_size
            dist.all_gather_object(told, (loss_sum, tokens))
            assert told == [(loss_sum, tokens)] * context.world_size
            evaluations.append((loss_sum.hex(), tokens))

    evaluate()
    for step in range(task["first"], task["last"] + 1):
        faulty = task["fault"] if step == task["fault_step"] else None
        with faults.planted(engine, faulty):
            outcome = engine.step(share(step), pace.learning_rate(step), pace.admits)
        losses.append(outcome.loss.hex())
        norms.append(outcome.grad_norm)
        if outcome.routing is not None:
            routing.append((outcome.routing.max_load, outcome.routing.balance_loss))
            dropped.append((outcome.routing.dropped, outcome.routing.choices))
        skipped.append(pace.done(step, outcome))
        evaluate()
        if task["save"] and step == task["save_at"]:
            shape = ModelShape.from_config(config.to_dict())
            save(engine, job, shape, Path(task["save"]), step, pace)
    if not task["last"] and task["gradients"]:
        return
    if job.ema is not None and job.ema.export:
        engine.take_average()
    keep("weights", dict(engine.weights()))
    logits = engine.logits(global_batch(job, config.vocab_size, 1)[0])
    if logits is not None:
        keep("logits", {"logits": logits})
    if context.rank == 0:
        results = {
            "losses": losses,
            "norms": norms,
            "skipped": skipped,
            "evaluations": evaluations,
            "routing": routing,
            "dropped": dropped,
        }
        (out / "results.json").write_text(json.dumps(results))


def run_tasks(rank: int, world: int, port: int, listing: Path, log: Path) -> None:
    """The whole life of one rank; what it prints goes to `log`."""
    with log.open("w") as said:
        os.dup2(said.fileno(), 1)
        os.dup2(said.fileno(), 2)
    torch.set_num_threads(1)
    # DeepSpeed collects garbage at every start, and would search all that was imported.
    gc.freeze()
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world)
    for task in json.loads(listing.read_text()):
        do(task)
    dist.destroy_process_group()

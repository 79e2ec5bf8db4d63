"""One rank out of three that trains twice, each time in a process group of its own.

The first life takes four steps and keeps a checkpoint after two, the second goes on from it.
"""

from pathlib import Path

import torch

from rayline.models.stage import load_config
from rayline.spec import ModelShape, WorkerContext
from rayline.train.build import build_engine
from rayline.train.engine import Batch
from rayline.train.process_group import joined
from support.engine_rank import global_batch, restore, save
from support.plain_training import job

WORLD = 3


def live(model: Path, kept: Path, port: int, rank: int, first_step: int) -> list[str]:
    """The losses of the steps from `first_step` to 4."""
    spec = job({"data": WORLD, "zero_stage": 3}, engine="deepspeed", batch={"sequences": 2 * WORLD})
    config = load_config(model)
    place = spec.plan.coordinate(rank)
    context = WorkerContext(rank, WORLD, rank, place, "127.0.0.1", port, "cpu")
    losses = []
    with joined(context) as device:
        engine = build_engine(spec, context, model, device)
        if first_step > 1:
            restore(engine, kept / f"step-{first_step - 1:08d}")
        for step in range(first_step, 5):
            ids, labels = global_batch(spec, config.vocab_size, step)
            share = Batch(ids.chunk(WORLD)[rank], labels.chunk(WORLD)[rank])
            losses.append(engine.step(share, 1e-3).loss.hex())
            if first_step == 1 and step == 2:
                save(engine, spec, ModelShape.from_config(config.to_dict()), kept, step)
    return losses


def two_lives(rank: int, world: int, port: int, folder: Path, log: Path) -> None:
    """Both lives of one rank out of `world`; the second one's port is the file `folder`/port, the
    model lies in `folder`/model. Rank 0 writes the losses of each life on a line of its log."""
    torch.set_num_threads(1)
    ports = (port, int((folder / "port").read_text()))
    lives = [
        live(folder / "model", folder, place, rank, first_step)
        for place, first_step in zip(ports, (1, 3), strict=True)
    ]
    log.write_text("\n".join(" ".join(losses) for losses in lives))

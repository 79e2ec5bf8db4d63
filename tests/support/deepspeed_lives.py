"""One rank out of three that trains twice, each time in a process group of its own.

Arguments: model folder, folder for a checkpoint, port of the first life, port of the second, rank.
The first life takes four steps and keeps a checkpoint after two, the second goes on from it. Prints
the losses of each life on a line.
"""

import sys
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


def main() -> None:
    torch.set_num_threads(1)
    model, kept, rank = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[5])
    for port, first_step in zip(map(int, sys.argv[3:5]), (1, 3), strict=True):
        print(*live(model, kept, port, rank, first_step), flush=True)


if __name__ == "__main__":
    main()

"""One rank of two, under torchrun: saves its half of a tensor into the folder it is given."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist

from rayline import checkpoint
from rayline.parallel.piece import Piece
from rayline.spec import ParallelPlan


def main() -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    half = torch.arange(8.0)[4 * rank : 4 * rank + 4]
    header = checkpoint.CheckpointHeader(1, 1, ParallelPlan(data=2), "native", "f", "m", {})
    piece = Piece("weight/w", (8,), (4 * rank,), half, True)
    checkpoint.save(Path(sys.argv[1]), header, [piece], checkpoint.exchange(), keep=1)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()

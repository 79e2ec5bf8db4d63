"""Savers that are killed: each is a fork of this process, so torch is imported once.

Arguments: a folder, by path or address, and how many savers. Saver i writes step after step below
<folder>/i and is ended by SIGKILL at a random moment. Prints a JSON list: the last step that each
said it had saved.
"""

import itertools
import json
import os
import random
import signal
import sys
import time

import torch

from rayline import checkpoint
from rayline.parallel.piece import Piece
from rayline.spec import ParallelPlan


def save_endlessly(root: checkpoint.Location, said: int) -> None:
    whole = torch.zeros(200_000)
    piece = Piece("weight/w", (200_000,), (0,), whole, True)
    for step in itertools.count(1):
        whole.fill_(step)
        header = checkpoint.CheckpointHeader(step, step, ParallelPlan(), "native", "f", "m", {})
        checkpoint.save(root, header, [piece], checkpoint.Alone(), keep=1)
        os.write(said, b"%d\n" % step)


def kill_one(root: checkpoint.Location, after_s: float) -> int:
    """The last step that the saver said it had saved."""
    heard, said = os.pipe()
    saver = os.fork()
    if saver == 0:
        os.close(heard)
        try:
            save_endlessly(root, said)
        finally:
            os._exit(1)
    os.close(said)
    with os.fdopen(heard) as lines:
        first = lines.readline()
        time.sleep(after_s)
        os.kill(saver, signal.SIGKILL)
        os.waitpid(saver, 0)
        return int((first + lines.read()).split()[-1])


def main() -> None:
    torch.set_num_threads(1)
    draw = random.Random(0)
    root, attempts = checkpoint.located(sys.argv[1]), int(sys.argv[2])
    print(json.dumps([kill_one(root / str(i), draw.uniform(0, 0.05)) for i in range(attempts)]))


if __name__ == "__main__":
    main()

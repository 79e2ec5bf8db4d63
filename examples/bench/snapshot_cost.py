"""What a snapshot costs the step: seconds to keep a state in memory against one plain copy of it.

    python examples/bench/snapshot_cost.py            # states of 16, 64 and 256 MiB, 15 times each

A snapshot is copied, hashed and marked; a post for storage is the same for what a rank owns. Both
are on the step's path; everything else is done by the keeper's process. Compared is torch's copy of
the same tensors to the host, which is what the state costs to move at all. One process, one thread;
the state lies on the GPU where there is one.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from ranks import leave_result

from rayline.checkpoint import OUTBOX, CheckpointHeader, SnapshotArea, clear
from rayline.parallel.piece import Piece
from rayline.spec import ParallelPlan

SIZES_MIB = (16, 64, 256)
TENSOR_MIB = 2


def state_of(mib: int, device: str) -> list[Piece]:
    """So many float32 tensors of 2 MiB, all owned."""
    rows = TENSOR_MIB * 2**20 // 4 // 512
    return [
        Piece(
            f"weight/{number}",
            (rows, 512),
            (0, 0),
            torch.randn(rows, 512, device=device),
            owner=True,
        )
        for number in range(mib // TENSOR_MIB)
    ]


def median_s(act: Callable[[int], None], times: int) -> float:
    """Median of `times` calls, the first three left out: they touch memory for the first time."""
    seconds = []
    for number in range(times + 3):
        began_s = time.perf_counter()
        act(number)
        seconds.append(time.perf_counter() - began_s)
    return statistics.median(seconds[3:])


def cost_of(mib: int, times: int, device: str) -> dict[str, float]:
    """Seconds, and how they relate to the plain copy."""
    pieces = state_of(mib, device)
    targets = [torch.empty_like(piece.data, device="cpu") for piece in pieces]

    def header(step: int) -> CheckpointHeader:
        return CheckpointHeader(step, 8 * step, ParallelPlan(), "native", "spec", "model", {})

    def copy(_: int) -> None:
        for target, piece in zip(targets, pieces, strict=True):
            target.copy_(piece.data)

    file = os.memfd_create("bench")
    with SnapshotArea(Path(f"/proc/{os.getpid()}/fd/{file}")) as area:
        copy_s = median_s(copy, times)
        keep_s = median_s(lambda step: area.keep(header(step), 1, pieces, []), times)

        def post(step: int) -> None:
            if area.mapped is not None:
                clear(area.mapped, OUTBOX)
            area.post(header(step), 1, pieces)

        post_s = median_s(post, times)
    os.close(file)
    return {
        "plain_copy_s": copy_s,
        "snapshot_s": keep_s,
        "post_s": post_s,
        "snapshot_over_copy": keep_s / copy_s,
        "post_over_copy": post_s / copy_s,
    }


def main() -> None:
    """Parse, measure, write the dated result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)
    gpu = torch.cuda.is_available()
    device = "cuda" if gpu else "cpu"
    leave_result(
        __file__,
        __doc__,
        f"--times {options.times}",
        variant="-gpu" if gpu else "",
        versions={name: version(name) for name in ("torch", "xxhash")},
        device=torch.cuda.get_device_name() if gpu else "cpu",
        states={f"{mib} MiB": cost_of(mib, options.times, device) for mib in SIZES_MIB},
    )


if __name__ == "__main__":
    main()

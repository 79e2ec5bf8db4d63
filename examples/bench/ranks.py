"""Ranks for benchmarks, forked from one process that has imported torch, and the file that a
benchmark leaves. Imported by the scripts beside it."""

from __future__ import annotations

import datetime
import json
import multiprocessing
import os
import platform
import socket
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from rayline.spec import JobSpec, WorkerContext


def on_ranks(ranks: int, life: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `life(rank, *arguments)` returns on each rank, in order; each is a fresh process with
    one thread, in one gloo group. Raises RuntimeError where a rank ends without an answer."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    forks = multiprocessing.get_context("fork")
    pipes, processes = [], []
    for rank in range(ranks):
        ours, theirs = forks.Pipe(duplex=False)
        process = forks.Process(target=_live, args=(rank, ranks, port, theirs, life, arguments))
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    try:
        return [pipe.recv() for pipe in pipes]
    except EOFError:
        raise RuntimeError("a rank ended without an answer; its traceback stands above") from None
    finally:
        for process in processes:
            process.join(timeout=10)
            process.kill()


def _live(
    rank: int,
    ranks: int,
    port: int,
    pipe: Any,
    life: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=ranks)
    pipe.send(life(rank, *arguments))
    dist.destroy_process_group()


def context_of(job: JobSpec, rank: int) -> WorkerContext:
    """The place of a rank whose group is there already, so that nobody asks for its address."""
    return WorkerContext(
        rank=rank,
        world_size=job.plan.world_size,
        local_rank=rank,
        coordinate=job.plan.coordinate(rank),
        master_address="127.0.0.1",
        master_port=0,
        device="cpu",
    )


def leave_result(
    script: str,
    document: str | None,
    options: str,
    out: Path | None = None,
    *,
    variant: str = "",
    **found: Any,
) -> Path:
    """Print the result and write it, to `out` or to the dated file in results/, whose name ends in
    `variant` before the date; returns the file. `document` is the script's docstring, `options`
    what it was called with; what is `found` stands in place of what is said here."""
    today = datetime.datetime.now(tz=datetime.UTC).date().isoformat()
    name = Path(script).stem
    result = {
        "what": (document or "").splitlines()[0],
        "date": today,
        "command": f"python examples/bench/{name}.py {options}".strip(),
        "hardware": f"{os.cpu_count()} cores, {platform.machine()}, no GPU",
        "versions": {package: version(package) for package in ("torch", "transformers")},
        "python": platform.python_version(),
        **found,
    }
    print(json.dumps(result, indent=2))
    file = out or Path(script).parent / "results" / f"{name}{variant}-{today}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(result, indent=2) + "\n")
    return file

"""What the Ray gang costs: steps per second of the gang against the same engine under torchrun.

    python examples/bench/gang_overhead.py            # 40 slices of each, then the ratio

Both run `rayline.train.loop.run_rank` with the same job, plan, model and data, and take turns (see
turns.py) of 4 s: after 8 s Ray, which is stopped with its gang, takes its node for lost. Ray runs
without its dashboard, as torchrun has none. The result file beside this script says on what, with
which versions and how often.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path

from ranks import leave_result
from turns import Contender, measures, ratios, take_turns

from rayline.spec import JobSpec, StepReport, WorkerContext

KINDS = ("gang", "torchrun")
ENDLESS_STEPS = 100_000


def bench_job(folder: Path, name: str, steps: int) -> JobSpec:
    """Two data-parallel workers on a model of 5 M parameters: a step of some hundred ms."""
    return JobSpec.parse(
        {
            "name": name,
            "model": {"directory": str(folder / "model")},
            "init": "random",
            "steps": steps,
            "data": {
                "kind": "text",
                "files": [str(folder / "text.jsonl")],
                "sequence_tokens": 128,
            },
            "batch": {"sequences": 16},
            "optim": {"lr": 1e-3},
            "plan": {"data": 2},
            "resources": {"device": "cpu"},
            "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
            "output_dir": str(folder / name),
        }
    )


def contender(kind: str, job: JobSpec, folder: Path) -> Contender:
    """One of the two, started."""
    spec, steps = folder / f"{kind}.yaml", folder / f"{kind}.steps"
    spec.write_text(job.to_yaml())
    command = [sys.executable, __file__, "--gang", str(spec), str(steps)]
    if kind == "torchrun":
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        workers = [f"--nproc-per-node={job.plan.world_size}", __file__]
        command = [*launcher, *workers, "--rank", str(spec), str(steps)]
    return Contender(command, {**os.environ, "OMP_NUM_THREADS": "1"}, steps)


def note_steps(log: Path) -> Callable[[StepReport], None]:
    """An observer that writes a line a step."""

    def note(report: StepReport) -> None:
        with log.open("a") as file:
            file.write(f"{report.at_s - report.seconds!r} {report.at_s!r}\n")

    return note


def run_gang(spec: Path, log: Path) -> None:
    """The driver of the gang."""
    import ray

    from rayline.actors import train

    # The daemons of the dashboard take some 3 % of a core.
    os.environ.setdefault("RAY_worker_niceness", "0")
    ray.init(address="local", include_dashboard=False, log_to_driver=False)
    train(JobSpec.load(spec), observers=[note_steps(log)])


def run_one_rank(spec: Path, log: Path) -> None:
    """What torchrun starts: one rank of the job."""
    import torch

    from rayline.train.link import Link
    from rayline.train.loop import run_rank

    torch.set_num_threads(1)
    job = JobSpec.load(spec)
    rank = int(os.environ["RANK"])
    context = WorkerContext(
        rank=rank,
        world_size=int(os.environ["WORLD_SIZE"]),
        local_rank=int(os.environ["LOCAL_RANK"]),
        coordinate=job.plan.coordinate(rank),
        master_address=os.environ["MASTER_ADDR"],
        # torchrun's own store stands there, and under it torch opens no other.
        master_port=int(os.environ["MASTER_PORT"]),
        device="cpu",
    )
    link = Link(note_steps(log), lambda: False)
    run_rank(job, context, Path(str(job.model.directory)), link)


def compare(slices: int, slice_s: float) -> dict[str, object]:
    """Both in turn; the ratio of steps per second, over all and slice by slice."""
    from rayline.models.tiny import write_tiny_model

    with tempfile.TemporaryDirectory() as temporary, ExitStack() as running:
        folder = Path(temporary)
        write_tiny_model(
            folder / "model", layers=6, hidden=256, heads=8, kv_heads=4, ffn=704, vocab=512
        )
        lines = [
            json.dumps({"text": f"line {n} of {n % 97}: {n * 7919 % 10007}"}) for n in range(4000)
        ]
        (folder / "text.jsonl").write_text("\n".join(lines))
        contenders: dict[str, Contender] = {}
        # The gang last: Ray takes a node for lost that is stopped for as long as the other starts.
        for kind in reversed(KINDS):
            contenders[kind] = contender(kind, bench_job(folder, kind, ENDLESS_STEPS), folder)
            running.callback(contenders[kind].end)
            contenders[kind].settle()
            contenders[kind].pause()
        seconds = take_turns(contenders, slices, slice_s)
    return {
        **{kind: measures(found) for kind, found in seconds.items()},
        "gang_over_torchrun": ratios(seconds["gang"], seconds["torchrun"]),
    }


def main() -> None:
    """Parse, measure, write the dated result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slices", type=int, default=40)
    parser.add_argument("--slice-s", type=float, default=4.0)
    parser.add_argument("--rank", nargs=2, type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--gang", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank:
        run_one_rank(*options.rank)
        return
    if options.gang:
        run_gang(*options.gang)
        return
    leave_result(
        __file__,
        __doc__,
        f"--slices {options.slices} --slice-s {options.slice_s:g}",
        versions={name: version(name) for name in ("ray", "torch", "transformers")},
        model="Llama, 6 layers, hidden 256, vocab 512; data 2 on gloo, 16 x 128 tokens a step",
        **compare(options.slices, options.slice_s),
    )


if __name__ == "__main__":
    main()

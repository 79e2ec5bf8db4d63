"""What the Ray gang costs: steps per second of the gang against the same engine under torchrun.

    python examples/bench/gang_overhead.py            # six rounds of both, then the ratio

Both run `rayline.train.loop.run_rank` with the same job, plan, model and data, in turn (A B B A),
on the same machine, so that a drift of the machine's speed meets both. Compared are medians of the
steps' own seconds, the first ones left out; starting up is not counted. The result file beside this
script says on what, with which versions and how often.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from ranks import leave_result

from rayline.spec import JobSpec, StepReport, WorkerContext

WARM_UP_STEPS = 5


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


def under_ray(job: JobSpec) -> list[float]:
    """Seconds of every step of a gang."""
    import ray

    from rayline.actors import train

    seconds: list[float] = []
    train(job, observers=[lambda report: seconds.append(report.seconds)])
    ray.shutdown()
    return seconds


def under_torchrun(job: JobSpec, folder: Path) -> list[float]:
    """Seconds of every step of the same ranks, started by torchrun."""
    spec, out = folder / f"{job.name}.yaml", folder / f"{job.name}.json"
    spec.write_text(job.to_yaml())
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    workers = [f"--nproc-per-node={job.plan.world_size}", __file__, "--rank", str(spec), str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*launcher, *workers], check=True, env=environment)
    seconds: list[float] = json.loads(out.read_text())
    return seconds


def run_one_rank(spec: Path, out: Path) -> None:
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
    seconds: list[float] = []

    def observe(report: StepReport) -> None:
        seconds.append(report.seconds)

    run_rank(job, context, Path(str(job.model.directory)), Link(observe, lambda: False))
    if rank == 0:
        out.write_text(json.dumps(seconds))


def compare(rounds: int, steps: int) -> dict[str, object]:
    """Both in turn; the ratio of steps per second, round by round."""
    from rayline.models.tiny import write_tiny_model

    found: dict[str, list[float]] = {"gang": [], "torchrun": []}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_tiny_model(
            folder / "model", layers=6, hidden=256, heads=8, kv_heads=4, ffn=704, vocab=512
        )
        lines = [
            json.dumps({"text": f"line {n} of {n % 97}: {n * 7919 % 10007}"}) for n in range(4000)
        ]
        (folder / "text.jsonl").write_text("\n".join(lines))
        for number in range(rounds):
            for kind in sorted(found, reverse=number % 2 == 1):
                job = bench_job(folder, f"{kind}-{number}", steps)
                seconds = under_ray(job) if kind == "gang" else under_torchrun(job, folder)
                found[kind].append(1 / statistics.median(seconds[WARM_UP_STEPS:]))
                print(f"round {number} {kind}: {found[kind][-1]:.3f} steps/s", flush=True)
    ratios = [a / b for a, b in zip(found["gang"], found["torchrun"], strict=True)]
    return {
        "steps_per_s": found,
        "ratio_gang_over_torchrun": ratios,
        "median_ratio": statistics.median(ratios),
    }


def main() -> None:
    """Parse, measure, write the dated result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=35)
    parser.add_argument("--rank", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank:
        run_one_rank(*options.rank)
        return
    leave_result(
        __file__,
        __doc__,
        f"--rounds {options.rounds} --steps {options.steps}",
        versions={name: version(name) for name in ("ray", "torch", "transformers")},
        model="Llama, 6 layers, hidden 256, vocab 512; data 2 on gloo, 16 x 128 tokens a step",
        **compare(options.rounds, options.steps),
    )


if __name__ == "__main__":
    main()

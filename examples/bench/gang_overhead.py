"""What the Ray gang costs: steps per second of the gang against the same engine under torchrun.

    python examples/bench/gang_overhead.py            # 40 slices of each, then the ratio

Both run `rayline.train.loop.run_rank` with the same job, plan, model and data. They stand side by
side, and take turns by slices of a few seconds: while one runs every process of the other is
stopped, Ray's own among them (for 4 s at a time: after 8 s Ray takes its node for lost). So a drift
of the machine's speed, which is larger than what is looked for, meets both alike. Compared are
steps that lie whole within a slice; starting up is not counted. Ray runs without its dashboard, as
torchrun has none. The result file beside this script says on what, with which versions and how
often.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path

import psutil
from ranks import leave_result

from rayline.spec import JobSpec, StepReport, WorkerContext

KINDS = ("gang", "torchrun")
ENDLESS_STEPS = 100_000
SETTLING_STEPS = 5
"""Of each, before the slices begin."""


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


class Contender:
    """One of the two: a tree of processes that steps until it is ended, and notes every step."""

    def __init__(self, kind: str, job: JobSpec, folder: Path) -> None:
        spec = folder / f"{kind}.yaml"
        spec.write_text(job.to_yaml())
        self._log = folder / f"{kind}.steps"
        command = [sys.executable, __file__, "--gang", str(spec), str(self._log)]
        if kind == "torchrun":
            launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
            workers = [f"--nproc-per-node={job.plan.world_size}", __file__]
            command = [*launcher, *workers, "--rank", str(spec), str(self._log)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with (folder / f"{kind}.log").open("w") as log:
            self._process = psutil.Popen(command, env=environment, stdout=log, stderr=log)

    def steps(self) -> list[tuple[float, float]]:
        """Begin and end (Unix time) of every step so far."""
        if not self._log.exists():
            return []
        # The last line may be half written.
        lines = self._log.read_text().split("\n")[:-1]
        pairs = (line.split() for line in lines)
        return [(float(end_s) - float(seconds), float(end_s)) for end_s, seconds in pairs]

    def settle(self) -> None:
        """Return once it steps; raises as `check` does."""
        while len(self.steps()) < SETTLING_STEPS:
            self.check()
            time.sleep(0.2)

    def check(self) -> None:
        """Raise RuntimeError, with its last lines, where it has ended."""
        if self._process.poll() is not None:
            said = self._log.with_suffix(".log").read_text()
            raise RuntimeError(f"a contender ended:\n{said[-2000:]}")

    def pause(self) -> None:
        """Stop every process of the tree."""
        for process in self._tree():
            process.suspend()

    def go_on(self) -> None:
        """Let every process of the tree run."""
        for process in self._tree():
            process.resume()

    def end(self) -> None:
        """End the tree."""
        tree = self._tree()
        for process in tree:
            process.kill()
        psutil.wait_procs(tree, timeout=10)

    def _tree(self) -> list[psutil.Process]:
        if not self._process.is_running():
            return []
        # Those that watch come first: while they stop, what they watch still answers.
        return [self._process, *self._process.children(recursive=True)]


def note_steps(log: Path) -> Callable[[StepReport], None]:
    """An observer that writes a line a step."""

    def note(report: StepReport) -> None:
        with log.open("a") as file:
            file.write(f"{report.at_s!r} {report.seconds!r}\n")

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
            contenders[kind] = Contender(kind, bench_job(folder, kind, ENDLESS_STEPS), folder)
            running.callback(contenders[kind].end)
            contenders[kind].settle()
            contenders[kind].pause()
        windows: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
        for number in range(slices):
            for kind in sorted(KINDS, reverse=number % 2 == 1):
                contenders[kind].go_on()
                began_s = time.time()
                time.sleep(slice_s)
                windows[kind].append((began_s, time.time()))
                contenders[kind].pause()
        for one in contenders.values():
            one.check()
        steps = {kind: contenders[kind].steps() for kind in KINDS}
    return judge({kind: within(steps[kind], windows[kind]) for kind in KINDS})


def within(
    steps: list[tuple[float, float]], windows: list[tuple[float, float]]
) -> list[list[float]]:
    """Seconds of the steps that lie whole in each window."""
    return [
        [end_s - begin_s for begin_s, end_s in steps if first_s <= begin_s and end_s <= last_s]
        for first_s, last_s in windows
    ]


def judge(seconds: dict[str, list[list[float]]]) -> dict[str, object]:
    """The ratio of mean steps per second over all slices, and its spread over pairs of slices."""
    pairs = [
        statistics.mean(torchrun) / statistics.mean(gang)
        for gang, torchrun in zip(seconds["gang"], seconds["torchrun"], strict=True)
        if gang and torchrun
    ]
    flat = {kind: [one for slice_ in slices for one in slice_] for kind, slices in seconds.items()}
    means = {kind: statistics.mean(steps) for kind, steps in flat.items()}
    middles = {kind: statistics.median(steps) for kind, steps in flat.items()}
    quarter = statistics.quantiles(pairs, n=4)
    return {
        "steps": {kind: len(steps) for kind, steps in flat.items()},
        "mean_step_s": means,
        "median_step_s": middles,
        "ratio_gang_over_torchrun": means["torchrun"] / means["gang"],
        "ratio_of_medians": middles["torchrun"] / middles["gang"],
        "ratio_of_pairs_of_slices_median": statistics.median(pairs),
        "ratio_of_pairs_of_slices_quartiles": [quarter[0], quarter[2]],
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

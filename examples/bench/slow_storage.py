"""Storage that is slow, or takes nothing any more: what does it cost the steps, and is it told?

    python examples/bench/slow_storage.py             # 3 runs of 150 steps of each kind, some 6 min

Two workers on gloo, data 2, a checkpoint every 10 steps. The kinds take turns: storage as fast as
it is; so slow that a checkpoint takes some seconds; so slow that each is given up. The
slow ones are the bound on writing that a spec can set, which sleeps within the writer. The first
steps of a run are left out: they touch memory for the first time; and the last one, which is not
done before its checkpoint is on storage.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from quick import quick_job
from ranks import leave_result

from rayline.spec import StepReport

KINDS: dict[str, dict[str, object]] = {
    "fast": {},
    "slow": {"checkpoint.write_mb_per_s": 4.0},
    "given up": {"checkpoint.write_mb_per_s": 1.0, "checkpoint.give_up_after_s": 2.0},
}
SKIPPED = 15
P99_BAR = 1.10


def steps_of(kind: str, steps: int) -> dict[str, Any]:
    """One run: seconds of each step, and what the run tells of its checkpoints."""
    from rayline.actors.driver import train
    from rayline.tracking import read_run

    seconds: dict[int, float] = {}

    def observe(report: StepReport) -> None:
        seconds[report.step] = report.seconds

    with tempfile.TemporaryDirectory() as folder:
        job = quick_job(
            Path(folder),
            {
                "steps": steps,
                "plan.data": 2,
                "checkpoint.every_steps": 10,
                "recovery.snapshot_every_steps": 5,
                "resources.cpus_per_worker": 0.5,
                **KINDS[kind],
            },
        )
        outcome = train(job, observers=[observe])
        told = [str(event) for event in read_run(job.tracking, outcome.run_id).events]
    return {
        "seconds": [seconds[step] for step in sorted(seconds) if SKIPPED < step < steps],
        "given_up": sum("was given up" in line for line in told),
        "not_taken": sum("has not come back" in line for line in told),
    }


def spread(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """All runs of one kind."""
    every = [second for run in runs for second in run["seconds"]]
    hundredths = statistics.quantiles(every, n=100)
    return {
        "steps": len(every),
        "step_s": {"p50": hundredths[49], "p90": hundredths[89], "p99": hundredths[98]},
        "saves_given_up": sum(run["given_up"] for run in runs),
        "saves_not_begun_meanwhile": sum(run["not_taken"] for run in runs),
    }


def main() -> None:
    """Parse, measure by turns, write the dated result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=150)
    options = parser.parse_args()
    runs: dict[str, list[dict[str, Any]]] = {kind: [] for kind in KINDS}
    for _ in range(options.runs):
        for kind, so_far in runs.items():
            so_far.append(steps_of(kind, options.steps))
    found = {kind: spread(so_far) for kind, so_far in runs.items()}
    fast = found["fast"]["step_s"]
    over = {
        kind: {part: found[kind]["step_s"][part] / fast[part] for part in fast}
        for kind in ("slow", "given up")
    }
    leave_result(
        __file__,
        __doc__,
        f"--runs {options.runs} --steps {options.steps}",
        versions={name: version(name) for name in ("ray", "torch")},
        model="Llama, 0.7 M parameters; 16 x 128 tokens a step, data 2 on gloo",
        kinds=KINDS,
        **found,
        over_fast=over,
        holds={
            f"{kind}: p99 at most {P99_BAR:g}": its["p99"] <= P99_BAR for kind, its in over.items()
        },
    )


if __name__ == "__main__":
    main()

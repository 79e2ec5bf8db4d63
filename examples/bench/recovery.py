"""Kills at random ranks, steps and phases: is the run the same, and how long until it goes on?

    python examples/bench/recovery.py --kills 10          # each plan and engine in turn
    python examples/bench/recovery.py --spares 0 --only native-data2-tensor2 --variant=-cold

Every plan runs once in peace and once under seeded kills; the losses (as hexadecimal floats) and
the exported weights (by SHA-256) of the two are compared. The seconds are from SIGKILL, noted by
the killed rank, to the end of the next finished step, noted by rank 0. Kills lie as far apart as a
spare takes to stand again. Ray Train v2 is killed in the same run: four gloo workers, a checkpoint
every step.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from quick import quick_job
from ranks import leave_result

from rayline.spec import JobSpec

PLANS: dict[str, dict[str, object]] = {
    "native-data2-tensor2": {"plan.data": 2, "plan.tensor": 2},
    "native-data2-pipeline2": {"plan.data": 2, "plan.pipeline": 2, "plan.microbatches": 2},
    "deepspeed-data2-tensor2": {
        "engine": "deepspeed",
        "plan.data": 2,
        "plan.tensor": 2,
        "plan.zero_stage": 2,
    },
    "deepspeed-data2-pipeline2": {
        "engine": "deepspeed",
        "plan.data": 2,
        "plan.pipeline": 2,
        "plan.microbatches": 2,
        "plan.zero_stage": 1,
    },
}


def job_of(folder: Path, name: str, steps: int, spares: int) -> JobSpec:
    """The quickstart's model (0.7 M parameters) under one of the plans."""
    return quick_job(
        folder,
        {
            "name": name,
            "steps": steps,
            "checkpoint.every_steps": 10,
            "recovery.snapshot_every_steps": 1,
            "recovery.spares": spares,
            "resources.cpus_per_worker": 0.2,
            "output_dir": str(folder / name),
            **PLANS[name],
        },
    )


def under_kills(name: str, kills: int, gap_steps: int, seed: int, spares: int) -> dict[str, Any]:
    """One plan, both runs."""
    from rayline.actors.chaos import chaos, draw_faults

    with tempfile.TemporaryDirectory() as temporary:
        job = job_of(Path(temporary), name, 4 + (kills + 1) * gap_steps, spares)
        drawn = draw_faults(
            job.changed({"steps": 3 + 2 * kills, "checkpoint.every_steps": 2}), kills, seed
        )
        faults = [
            fault.model_copy(update={"step": (number + 1) * gap_steps // 10 * 10})
            for number, fault in enumerate(drawn)
        ]
        report = chaos(job, faults)
    whole = [
        one.detect_s + one.recovery.total_s
        for one in report.judged
        if one.detect_s is not None and one.recovery is not None
    ]
    quarters = statistics.quantiles(whole, n=4) if len(whole) > 1 else whole * 3
    return {
        "kills": len(report.judged),
        "recovered_losing_only_the_step_in_flight": sum(one.passed for one in report.judged),
        "steps": report.steps,
        "different_losses": report.different_losses,
        "weights_equal": report.weights_equal,
        "kill_to_next_step_s": {
            "median": statistics.median(whole),
            "quartiles": [quarters[0], quarters[2]],
            "most": max(whole),
        },
        "median_parts_s": {
            part: statistics.median(one.parts_s[part] for one in report.judged if one.recovery)
            for part in ("detect", "leave", "place", "start", "restore", "step")
        },
        "faults": {str(one.fault): one.recovery and one.recovery.total_s for one in report.judged},
    }


def ray_train() -> dict[str, Any]:
    """The same kill under Ray Train v2."""
    with tempfile.TemporaryDirectory() as temporary:
        out = Path(temporary) / "out.json"
        script = Path(__file__).parent / "peers" / "ray_train_recovery.py"
        subprocess.run([sys.executable, str(script), str(out)], check=True)
        found: dict[str, Any] = json.loads(out.read_text())
    return found


def main() -> None:
    """Parse, measure, write the dated result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10, help="of each plan")
    parser.add_argument("--gap-steps", type=int, default=60, help="steps between kills")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--spares", type=int, default=1)
    parser.add_argument("--only", nargs="+", choices=list(PLANS), default=list(PLANS))
    parser.add_argument("--variant", default="", help="end of the result file's name")
    options = parser.parse_args()
    found = {
        name: under_kills(name, options.kills, options.gap_steps, options.seed, options.spares)
        for name in options.only
    }
    peer = ray_train()
    leave_result(
        __file__,
        __doc__,
        f"--kills {options.kills} --gap-steps {options.gap_steps} --seed {options.seed} "
        f"--spares {options.spares} --only {' '.join(options.only)}",
        variant=options.variant,
        versions={name: version(name) for name in ("ray", "torch", "deepspeed")},
        model="Llama, 0.7 M parameters; 16 x 128 tokens a step, four workers on gloo",
        plans=found,
        ray_train_v2=peer,
        times_faster_than_ray_train={
            name: peer["kill_to_next_step_s"] / one["kill_to_next_step_s"]["median"]
            for name, one in found.items()
        },
    )


if __name__ == "__main__":
    main()

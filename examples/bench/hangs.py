"""Ranks that hang: is each found in time, by its name, and is a clean run left in peace?

    python examples/bench/hangs.py                   # 20 hangs, 2,000 clean steps
    python examples/bench/hangs.py --hangs 4 --gap-steps 50

The job runs once in peace, where nothing may be taken for a hang, and once with ranks that stop
(SIGSTOP) or sleep, drawn over ranks and phases. A hang counts as named where the recovery's reason
has its rank; the seconds are from the fault, noted by the rank, to the driver's verdict.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from quick import quick_job
from ranks import leave_result

from rayline.spec import Fault, FaultKind, FaultPhase

KINDS: tuple[FaultKind, ...] = ("stop", "hang")
PHASES: tuple[FaultPhase, ...] = ("data", "forward", "backward", "collective", "optimizer")


def drawn(hangs: int, gap_steps: int, ranks: int, seed: int) -> list[Fault]:
    """So many hangs, `gap_steps` apart."""
    draw = random.Random(seed)
    return [
        Fault(
            kind=draw.choice(KINDS),
            rank=draw.randrange(ranks),
            step=(number + 1) * gap_steps,
            phase=draw.choice(PHASES),
        )
        for number in range(hangs)
    ]


def measure(hangs: int, gap_steps: int, seed: int) -> dict[str, Any]:
    """Both runs."""
    from rayline.actors.chaos import chaos

    with tempfile.TemporaryDirectory() as folder:
        job = quick_job(
            Path(folder),
            {
                "steps": (hangs + 1) * gap_steps,
                "data.sequence_tokens": 32,
                "plan.tensor": 2,
                "recovery.snapshot_every_steps": 1,
                "recovery.spares": 1,
                "resources.cpus_per_worker": 0.2,
            },
        )
        report = chaos(job, drawn(hangs, gap_steps, job.plan.world_size, seed))
        # Whatever was taken for a hang left its verdict there.
        alarms = list((Path(job.directory) / "unbroken" / "hangs").glob("*/verdict.txt"))
    found_s = [one.detect_s for one in report.judged if one.detect_s is not None]
    return {
        "hangs": len(report.judged),
        "named_in_15_s_and_recovered": sum(one.passed for one in report.judged),
        "found_s": {"median": statistics.median(found_s), "most": max(found_s)},
        "clean_steps": report.steps,
        "false_alarms": len(alarms),
        "different_losses": report.different_losses,
        "weights_equal": report.weights_equal,
        "verdicts": {str(one.fault): one.recovery and one.recovery.reason for one in report.judged},
    }


def main() -> None:
    """Parse, measure, write the dated result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hangs", type=int, default=20)
    parser.add_argument("--gap-steps", type=int, default=96)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    found = measure(options.hangs, options.gap_steps, options.seed)
    leave_result(
        __file__,
        __doc__,
        f"--hangs {options.hangs} --gap-steps {options.gap_steps} --seed {options.seed}",
        versions={name: version(name) for name in ("ray", "torch")},
        model="Llama, 0.7 M parameters; 16 x 32 tokens a step, data 2 x tensor 2 on gloo",
        **found,
    )


if __name__ == "__main__":
    main()

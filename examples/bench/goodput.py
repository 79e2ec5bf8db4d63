"""Goodput of a gang whose workers are killed at random, minutes apart: how much of the time counts?

    python examples/bench/goodput.py                                  # 20 min, a kill every 2 min
    python examples/bench/goodput.py --minutes 5 --mean-gap-s 60

A Poisson process in real time kills one of the running ranks, whichever is drawn, by SIGKILL from
outside. Goodput is

    steps finished x seconds of an undisturbed step / seconds from the first step's end to the last

where a step counts once, however often it was done, and an undisturbed step is the mean of those
that began at least SETTLED_S after the start or the newest recovery and ended before the next kill.
So what is lost is all there is to lose: the step in flight, the recovery, and what replacing the
spare takes from the steps. Four workers on gloo, one warm spare, a snapshot every step, a
checkpoint every 100.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import threading
import time
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
from quick import quick_job
from ranks import leave_result

from rayline.spec import StepReport

SETTLED_S = 30.0
"""After a recovery a new spare imports torch for some 20 s, on the same two cores."""
LOOK_S = 1.0
COMPUTING_PERCENT = 5.0


class Killer(threading.Thread):
    """Kills a random rank of this process's gang after gaps drawn from an exponential."""

    def __init__(self, mean_gap_s: float, seed: int) -> None:
        super().__init__(daemon=True)
        self._draw = random.Random(seed)
        self._mean_gap_s = mean_gap_s
        self.kills: list[float] = []
        """Unix times."""
        self.done = threading.Event()

    def run(self) -> None:
        """Until `done`."""
        while not self.done.wait(self._draw.expovariate(1 / self._mean_gap_s)):
            ranks = running_ranks()
            if ranks:
                self.kills.append(time.time())
                self._draw.choice(ranks).kill()


def running_ranks() -> list[psutil.Process]:
    """The processes in which a rank trains: of all workers those that compute, which a spare does
    not once it has imported torch."""
    workers = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if " ".join(process.cmdline()).startswith("ray::Worker"):
                process.cpu_percent()
                workers.append(process)
    time.sleep(LOOK_S)
    return sorted((one for one in workers if _computes(one)), key=lambda process: process.pid)


def _computes(process: psutil.Process) -> bool:
    try:
        return process.cpu_percent() > COMPUTING_PERCENT
    except psutil.Error:
        return False


def measure(minutes: float, mean_gap_s: float, seed: int, spares: int) -> dict[str, Any]:
    """One run under kills."""
    from rayline.actors.driver import train

    with tempfile.TemporaryDirectory() as folder:
        job = quick_job(
            Path(folder),
            {
                "steps": 1_000_000,
                "plan.tensor": 2,
                "checkpoint.every_steps": 100,
                "recovery.snapshot_every_steps": 1,
                "recovery.spares": spares,
                "recovery.max_restarts": 1000,
                "resources.cpus_per_worker": 0.2,
            },
        )
        killer, stop = Killer(mean_gap_s, seed), threading.Event()
        ends_s: dict[int, float] = {}

        def observe(report: StepReport) -> None:
            if not ends_s:
                killer.start()
            ends_s[report.step] = report.at_s
            if report.at_s - min(ends_s.values()) > 60 * minutes:
                killer.done.set()
                stop.set()

        outcome = train(job, observers=[observe], stop=stop)
        if not killer.kills:
            raise RuntimeError("nothing was killed: no worker computed whenever it was looked")
    recoveries = [(one.seen_s, one.step_s) for one in outcome.recoveries]
    return goodput(ends_s, killer.kills, recoveries)


def goodput(
    ends_s: dict[int, float], kills: list[float], recoveries: list[tuple[float, float]]
) -> dict[str, Any]:
    """The figures of a run: when each step ended, when ranks were killed, and from when to when
    each recovery went. All Unix times."""
    steps = sorted(ends_s)
    begin_s, end_s = ends_s[steps[0]], ends_s[steps[-1]]
    backs = sorted(back for _, back in recoveries)
    # A kill in the course of a recovery ends with the next one.
    lost = [(kill, next((back for back in backs if back > kill), end_s)) for kill in kills]
    disturbed = [(begin, back + SETTLED_S) for begin, back in [(begin_s, begin_s), *lost]]
    undisturbed = [
        ends_s[step] - ends_s[step - 1]
        for step in steps[1:]
        if not any(ends_s[step] >= kill and ends_s[step - 1] <= end for kill, end in disturbed)
    ]
    step_s, whole_s = statistics.mean(undisturbed), end_s - begin_s
    lost_s = [back - kill for kill, back in lost]
    return {
        "goodput": (len(steps) - 1) * step_s / whole_s,
        "seconds": whole_s,
        "steps": len(steps),
        "each_step_once": steps == list(range(steps[0], steps[-1] + 1)),
        "undisturbed_step_s": step_s,
        "undisturbed_steps": len(undisturbed),
        "kills": len(kills),
        "recoveries": len(recoveries),
        "kill_to_next_step_s": {
            "median": statistics.median(lost_s) if lost_s else None,
            "most": max(lost_s, default=None),
        },
    }


def main() -> None:
    """Parse, measure, write the dated result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--mean-gap-s", type=float, default=120.0)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--spares", type=int, default=1)
    options = parser.parse_args()
    found = measure(options.minutes, options.mean_gap_s, options.seed, options.spares)
    leave_result(
        __file__,
        __doc__,
        f"--minutes {options.minutes:g} --mean-gap-s {options.mean_gap_s:g} --seed {options.seed} "
        f"--spares {options.spares}",
        versions={name: version(name) for name in ("ray", "torch")},
        model="Llama, 0.7 M parameters; 16 x 128 tokens a step, data 2 x tensor 2 on gloo",
        formula="steps x seconds of an undisturbed step / seconds from first to last step",
        **found,
    )


if __name__ == "__main__":
    main()

"""How long workers of a pipeline wait: idle share of each schedule against its prediction.

    python examples/bench/pipeline_bubble.py            # every schedule, three rounds

Four workers on gloo run the schedules that training runs, over stages whose computing is a timed
wait: in the forward pass, for the gradients of the inputs and for those of the weights. So the
workers' work does not compete for this machine's cores, and what is measured is the schedule. The
prediction is `rayline.planner.pipeline.simulate` with the same times.

Idle shares are found in two ways. By the clock: the time from the first worker's beginning to the
last one's end, less what was waited on purpose. By counting: each worker adds up the units of its
waits, and what it sends carries its count, which the receiver takes over where it is higher; that
is the schedule alone, whatever else the machine does. How late the machine wakes those who wait,
and how long a step without waits takes, stand beside the clock's.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from ranks import leave_result, on_ranks
from torch import nn
from torch.distributed.pipelining import PipelineStage

from rayline.parallel.pipeline import schedule_over
from rayline.planner.pipeline import StageTimes, simulate
from rayline.spec import ParallelPlan

WORKERS, WIDTH = 4, 8


@dataclass(frozen=True)
class Case:
    """One schedule; each stage's time for a forward pass is given in units of --unit-ms. The
    gradients of the inputs and those of the weights take as long again."""

    schedule: str
    microbatches: int
    forward_units: tuple[float, ...]

    @property
    def plan(self) -> ParallelPlan:
        return ParallelPlan.parse(
            {
                "pipeline": WORKERS,
                "microbatches": self.microbatches,
                "schedule": self.schedule,
                "stages_per_worker": len(self.forward_units) // WORKERS,
            }
        )

    @property
    def predicted(self) -> float:
        times = [StageTimes(unit, unit, unit) for unit in self.forward_units]
        return simulate(self.plan, times).bubble_share


CASES = {
    "gpipe": Case("gpipe", 4, (1.0,) * 4),
    "1f1b": Case("1f1b", 4, (1.0,) * 4),
    "1f1b, costlier last stage": Case("1f1b", 4, (1.0, 1.0, 1.0, 1.5)),
    "interleaved, 2 stages a worker": Case("interleaved", 4, (0.5,) * 8),
    "zero_bubble": Case("zero_bubble", 4, (1.0,) * 4),
    "zero_bubble, 2 stages a worker": Case("zero_bubble", 4, (0.5,) * 8),
    "zero_bubble_v, 8 microbatches": Case("zero_bubble_v", 8, (0.5,) * 8),
}


class Round(NamedTuple):
    """One measured step; shares are of all workers' time up to the last one's end."""

    idle_share: float
    """By the clock."""
    counted_idle_share: float
    """By counting."""
    overhead_share: float
    """Length of a step whose waits take no time, over this one's."""
    late_share: float
    """How much longer waits took than asked for, on the worker where that was most."""


class Clock:
    """What this process has computed, which is: waited on purpose."""

    unit_s = 0.0
    now_units = 0.0
    """Units from the step's beginning to where this worker is."""
    busy_units = 0.0
    late_s = 0.0
    """Seconds that waits took longer than asked for."""

    @classmethod
    def restart(cls, unit_s: float) -> None:
        cls.unit_s = unit_s
        cls.now_units = cls.busy_units = cls.late_s = 0.0

    @classmethod
    def receive(cls, sender_units: float) -> None:
        """Take over the count of who sent what comes next, where it is higher."""
        cls.now_units = max(cls.now_units, sender_units)

    @classmethod
    def compute(cls, units: float) -> float:
        """Wait so many units; the count after it."""
        began = time.perf_counter()
        time.sleep(units * cls.unit_s)
        cls.late_s += time.perf_counter() - began - units * cls.unit_s
        cls.busy_units += units
        cls.now_units += units
        return cls.now_units


class Activation(torch.autograd.Function):
    """Takes its time in the forward pass, and again for the gradient of the input. The first number
    of what it gets and gives is the sender's count of units."""

    @staticmethod
    def forward(ctx, received, units):
        ctx.units = units
        sent = received.clone()
        Clock.receive(float(received[0, 0]))
        sent[0, 0] = Clock.compute(units)
        return sent

    @staticmethod
    def backward(ctx, gradient):
        sent = gradient.clone()
        sent[0, 0] = Clock.compute(ctx.units)
        return sent, None


class Arrival(torch.autograd.Function):
    """Where the gradient of a stage's output comes in, with its sender's count."""

    @staticmethod
    def forward(ctx, sent):
        return sent.clone()

    @staticmethod
    def backward(ctx, gradient):
        Clock.receive(float(gradient[0, 0]))
        return gradient


class Weight(torch.autograd.Function):
    """Takes its time for the gradient of the weight only."""

    @staticmethod
    def forward(ctx, weight, units):
        ctx.units = units
        return weight.clone()

    @staticmethod
    def backward(ctx, gradient):
        Clock.compute(ctx.units)
        return gradient, None


class TimedStage(nn.Module):
    """A stage of one weight; the first one has an embedding besides, as real ones do."""

    def __init__(self, number: int, units: float) -> None:
        super().__init__()
        self.units = units
        self.embedding = nn.Parameter(torch.zeros(WIDTH)) if number == 0 else None
        self.weight = nn.Parameter(torch.ones(WIDTH))

    def forward(self, received):
        if self.embedding is not None:
            received = received + self.embedding
        passed = Activation.apply(received, self.units)
        return Arrival.apply(passed * Weight.apply(self.weight, self.units))


def run_rank(rank: int, unit_s: float, rounds: int) -> dict[str, list[Round]]:
    """One worker: every case, `rounds` times after one to warm up."""
    return {name: measure_case(rank, name, unit_s, rounds) for name in CASES}


def measure_case(rank: int, name: str, unit_s: float, rounds: int) -> list[Round]:
    """What every round came to, the same on every worker."""
    case, plan = CASES[name], CASES[name].plan
    passing = torch.empty(1, WIDTH, device="meta", requires_grad=True)
    timed = {n: TimedStage(n, case.forward_units[n]) for n in plan.stages_of_worker(rank)}
    held = [
        PipelineStage(
            stage,
            number,
            plan.stages,
            torch.device("cpu"),
            input_args=passing.detach() if number == 0 else passing,
            output_args=passing,
        )
        for number, stage in timed.items()
    ]
    schedule = schedule_over(held, case.schedule, case.microbatches, lambda out, _: 0 * out.sum())
    run_step(plan, schedule, rank, unit_s=0.0)  # connects the workers
    found = []
    for _ in range(rounds):
        overhead_s = run_step(plan, schedule, rank, unit_s=0.0).length_s
        step = run_step(plan, schedule, rank, unit_s)
        found.append(
            Round(
                idle_share=1 - step.busy_units * unit_s / (WORKERS * step.length_s),
                counted_idle_share=1 - step.busy_units / (WORKERS * step.length_units),
                overhead_share=overhead_s / step.length_s,
                late_share=step.late_s / step.length_s,
            )
        )
    return found


class Step(NamedTuple):
    """What one step came to, over all workers."""

    length_s: float
    """From the first worker's beginning to the last one's end; their clocks are one clock."""
    length_units: float
    busy_units: float
    late_s: float


def run_step(plan: ParallelPlan, schedule, rank: int, unit_s: float) -> Step:
    batch = torch.zeros(plan.microbatches, WIDTH)
    inputs = (batch,) if plan.worker_of_stage(0) == rank else ()
    target = batch if plan.worker_of_stage(plan.stages - 1) == rank else None
    Clock.restart(unit_s)
    dist.barrier()
    began = time.perf_counter()
    schedule.step(*inputs, target=target, losses=[], return_outputs=False)
    ended = time.perf_counter()
    mine = torch.tensor(
        [began, ended, Clock.now_units, Clock.busy_units, Clock.late_s], dtype=torch.float64
    )
    of_all = [torch.empty_like(mine) for _ in range(WORKERS)]
    dist.all_gather(of_all, mine)
    begins, ends, now, busy, late = torch.stack(of_all).unbind(dim=1)
    return Step(
        length_s=float(ends.max() - begins.min()),
        length_units=float(now.max()),
        busy_units=float(busy.sum()),
        late_s=float(late.max()),
    )


def compare(unit_s: float, rounds: int) -> dict[str, dict[str, object]]:
    """Predicted and measured idle share of every case. Of the rounds the least counts: what else
    the machine does can only add to it."""
    measured = on_ranks(WORKERS, run_rank, unit_s, rounds)[0]
    found = {}
    for name, rounds_done in measured.items():
        predicted, best = CASES[name].predicted, min(rounds_done)
        print(
            f"{name:32s} predicted {predicted:6.1%}  counted {best.counted_idle_share:6.1%}  "
            f"by the clock {best.idle_share:6.1%} (overhead {best.overhead_share:.1%}, "
            f"late {best.late_share:.1%})",
            flush=True,
        )
        found[name] = {"predicted_idle_share": predicted, **best._asdict(), "rounds": rounds_done}
    return found


def main() -> None:
    """Parse, measure, write the dated result file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--unit-ms", type=float, default=100.0, help="a whole stage's forward pass")
    parser.add_argument("--out", type=Path, help="result file; default: dated, in results/")
    options = parser.parse_args()
    leave_result(
        __file__,
        __doc__,
        f"--rounds {options.rounds} --unit-ms {options.unit_ms:g}",
        options.out,
        pipeline=f"{WORKERS} workers on gloo, 4 microbatches where nothing else is said",
        stage=f"{options.unit_ms:g} ms each for the forward pass, the gradients of inputs and "
        "those of weights; half of it where a worker holds two stages",
        schedules=compare(options.unit_ms / 1000, options.rounds),
    )


if __name__ == "__main__":
    main()

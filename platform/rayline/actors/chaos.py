"""chaos: a job run twice, once in peace and once under faults, and what it kept of its promises.

The same job, seed and data: what a recovery promises is that nobody can tell the two runs apart by
their losses and weights, bit for bit. Faults happen inside the ranks (`rayline.train.chaos`), one
in each beginning of the gang, in the order of their steps; that a fault is the n-th is all that its
rank has to know to let it happen once.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from rayline.actors.controller import Observer
from rayline.actors.driver import JobOutcome, train
from rayline.actors.recovery import Recovery
from rayline.actors.straggler import LAP_STEPS, LAPS
from rayline.actors.worker import train_rank
from rayline.errors import SpecError
from rayline.spec import Fault, FaultPhase, JobSpec, StepReport, TrainResult, WorkerContext
from rayline.train.link import Link

DRAWN_PHASES: tuple[FaultPhase, ...] = (
    "forward",
    "backward",
    "collective",
    "optimizer",
    "snapshot",
    "save",
)
_SLOW_STEPS = LAPS * LAP_STEPS
"""A rank is named once it was slow in so many."""


@dataclass(frozen=True, slots=True)
class Judged:
    """One fault: what was promised of it and what came."""

    fault: Fault
    promise: str
    """Number and words of the promise."""
    seen: str
    passed: bool
    detect_s: float | None
    """From the fault to the driver's seeing it; None where it never came."""
    recovery: Recovery | None

    @property
    def parts_s(self) -> dict[str, float]:
        """Seconds from the fault to the next finished step, as far as known, by what took them."""
        found = {} if self.detect_s is None else {"detect": self.detect_s}
        if self.recovery is not None:
            found |= {
                "leave": self.recovery.leave_s,
                "place": self.recovery.place_s,
                "start": self.recovery.start_s,
                "restore": self.recovery.restore_s,
                "step": self.recovery.first_step_s,
            }
        return found


@dataclass(frozen=True, slots=True)
class ChaosReport:
    """Both runs, compared."""

    judged: tuple[Judged, ...]
    steps: int
    different_losses: int
    """Steps whose loss is not the same, bit for bit, or which one run lacks."""
    weights_equal: bool
    """Whether every exported file has the same SHA-256."""

    @property
    def passed(self) -> bool:
        """Whether every promise was kept."""
        return (
            all(one.passed for one in self.judged)
            and not self.different_losses
            and self.weights_equal
        )


def draw_faults(job: JobSpec, count: int, seed: int) -> list[Fault]:
    """`count` kills over ranks and phases, each at a step with a quiet one before it, after the
    third; a pure function of its arguments. Raises SpecError where the job has too few steps."""
    draw = random.Random(seed)
    spare = job.steps - 3 - 2 * count
    if spare < 0:
        raise SpecError(
            "steps",
            f"{count} faults need two steps each, after the third and before the last",
            value=job.steps,
            allowed=f"at least {2 * count + 3}",
        )
    every = job.checkpoint.every_steps
    faults = []
    gaps = sorted(draw.choices(range(spare + 1), k=count))
    for step in [4 + 2 * number + gap for number, gap in enumerate(gaps)]:
        saves = every is not None and step % every == 0
        phases = [phase for phase in DRAWN_PHASES if phase != "save" or saves]
        rank = draw.randrange(job.plan.world_size)
        faults.append(Fault(kind="kill", rank=rank, step=step, phase=draw.choice(phases)))
    return faults


def chaos(job: JobSpec, faults: Sequence[Fault], observers: Sequence[Observer] = ()) -> ChaosReport:
    """Run `job` in peace, then under `faults`, in folders below its own, and compare. Called by the
    driver. Raises SpecError where a fault could not happen, and what the runs raise."""
    ordered = sorted(faults, key=lambda fault: fault.step)
    check_faults(job, ordered)
    peace, peaceful = _run(job, "unbroken", [], observers)
    war, broken = _run(job, "broken", ordered, observers)
    return judge(ordered, peace, peaceful, war, broken)


def check_faults(job: JobSpec, faults: Sequence[Fault]) -> None:
    """Raises SpecError naming the first fault that the job has no place for."""
    for fault in faults:
        if fault.rank >= job.plan.world_size:
            raise SpecError(
                "rank",
                f"the plan has {job.plan.world_size} ranks",
                value=fault.rank,
                allowed=f"0..{job.plan.world_size - 1}",
            )
        if fault.step > job.steps:
            raise SpecError(
                "step",
                f"the job has {job.steps} steps",
                value=fault.step,
                allowed=f"0..{job.steps}",
            )
    slow = [fault.rank for fault in faults if fault.kind == "slow"]
    for rank in slow:
        if slow.count(rank) > 1:
            raise SpecError(
                "rank",
                "it is slow twice, and a slow rank is replaced only once",
                value=rank,
                allowed="one --slow for each rank",
            )


def _run(
    job: JobSpec, name: str, faults: Sequence[Fault], observers: Sequence[Observer]
) -> tuple[JobOutcome, dict[int, StepReport]]:
    recovery = job.recovery
    slow = any(fault.kind == "slow" for fault in faults)
    placed = job.changed(
        {
            "name": f"{job.name}-{name}",
            "output_dir": str(Path(job.directory) / name),
            "checkpoint.directory": job.checkpoint.directory
            and f"{job.checkpoint_directory}/{name}",
            "export.register_as": None,
            "checkpoint.resume": "never",
            "recovery.max_restarts": max(recovery.max_restarts, len(faults) + 1),
            "recovery.snapshot_every_steps": recovery.snapshot_every_steps or 1,
            # Each fault has a beginning of its own, so what is slow is to make way for the next.
            "recovery.stragglers": "replace" if slow else "report",
        }
    )
    reports: dict[int, StepReport] = {}

    def note(report: StepReport) -> None:
        reports[report.step] = report

    outcome = train(
        placed,
        observers=[note, *observers],
        rank_function=partial(faulty_rank, tuple(faults)) if faults else train_rank,
    )
    return outcome, reports


def faulty_rank(
    faults: Sequence[Fault],
    job: JobSpec,
    context: WorkerContext,
    model_directory: Path,
    link: Link,
) -> TrainResult:
    """The RankFunction of a job under faults."""
    from rayline.train.chaos import Drag, Trap

    number = context.epoch - 1
    if number < len(faults) and faults[number].rank == context.rank:
        made = Drag if faults[number].kind == "slow" else Trap
        trap = made(faults[number], fault_note(Path(job.directory), number), link.around)
        link = replace(link, around=trap.around)
    return train_rank(job, context, model_directory, link)


def fault_note(directory: Path, number: int) -> Path:
    """File in which a rank notes the time of fault `number` before it lets it happen."""
    return directory / "faults" / f"{number:03d}.json"


def judge(
    faults: Sequence[Fault],
    peace: JobOutcome,
    peaceful: dict[int, StepReport],
    war: JobOutcome,
    broken: dict[int, StepReport],
) -> ChaosReport:
    """Compare two runs of one job, the second under `faults`."""
    steps = sorted(peaceful.keys() | broken.keys())
    different = sum(
        step not in peaceful
        or step not in broken
        or peaceful[step].loss.hex() != broken[step].loss.hex()
        for step in steps
    )
    left, right = peace.result.export, war.result.export
    equal = left is not None and right is not None and left.sha256 == right.sha256
    judged = []
    for number, fault in enumerate(faults):
        note = fault_note(war.directory, number)
        at_s = json.loads(note.read_text())["at_s"] if note.exists() else None
        recovery = next((one for one in war.recoveries if one.epoch == number + 2), None)
        if fault.kind == "slow":
            judged.append(_judged_slow(fault, at_s, recovery, broken))
        else:
            judged.append(_judged(fault, at_s, recovery))
    return ChaosReport(tuple(judged), len(steps), different, equal)


def _judged(fault: Fault, at_s: float | None, recovery: Recovery | None) -> Judged:
    detect_s = None if at_s is None or recovery is None else recovery.seen_s - at_s
    if fault.kind in ("hang", "stop"):
        promise = "T7: named within 15 s, then recovered"
        named = recovery is not None and f"rank {fault.rank} " in recovery.reason
        kept = named and detect_s is not None and detect_s <= 15.0
    else:
        promise, oldest = "T2: only the step in flight is done again", fault.step - 1
        if fault.kind == "node":
            # The copy on another node may be one snapshot behind the node's own.
            promise = "T4: at most one step more than the one in flight is done again"
            oldest -= 1
        resumed = None if recovery is None else recovery.resumed_step
        kept = resumed is not None and resumed >= oldest
    return Judged(fault, promise, _seen(at_s, recovery), kept, detect_s, recovery)


def _judged_slow(
    fault: Fault, at_s: float | None, recovery: Recovery | None, reports: dict[int, StepReport]
) -> Judged:
    """A rank that was slow has to be named 30 s after its twentieth slow step."""
    promise = f"T8: named within 30 s of {_SLOW_STEPS} slow steps, then replaced"
    detect_s = None if at_s is None or recovery is None else recovery.seen_s - at_s
    last = reports.get(fault.step + _SLOW_STEPS - 1)
    kept = (
        recovery is not None
        and f"rank {fault.rank} " in recovery.reason
        and last is not None
        and recovery.seen_s - last.at_s <= 30.0
    )
    return Judged(fault, promise, _seen(at_s, recovery), kept, detect_s, recovery)


def _seen(at_s: float | None, recovery: Recovery | None) -> str:
    if recovery is None:
        return "it never happened" if at_s is None else "no recovery"
    whence = recovery.resumed_step
    return "from storage" if whence is None else f"went on after step {whence}"

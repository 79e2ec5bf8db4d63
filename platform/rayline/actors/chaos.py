"""chaos: a job run twice, once in peace and once under faults, and what it kept of its promises.

The same job, seed and data: what a recovery promises is that nobody can tell the two runs apart by
their losses and weights, bit for bit. Faults happen inside the ranks (`rayline.train.chaos`), one
in each beginning of the gang, in the order of their steps. A rank notes that a fault happens right
before it does: so it happens once, and the next beginning knows which one is next.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rayline.actors.controller import Observer
from rayline.actors.driver import train
from rayline.actors.judging import ChaosReport, Trial, judge
from rayline.actors.worker import train_rank
from rayline.errors import SpecError
from rayline.spec import Fault, FaultPhase, JobSpec, StepReport, TrainResult, WorkerContext
from rayline.tracking import read_state
from rayline.train.link import Around, Link

if TYPE_CHECKING:
    from rayline.train.chaos import Trap

DRAWN_PHASES: tuple[FaultPhase, ...] = (
    "forward",
    "backward",
    "collective",
    "optimizer",
    "snapshot",
    "save",
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
    peace = run_trial(job, "unbroken", [], observers)
    war = run_trial(job, "broken", ordered, observers)
    return judge(ordered, peace, war)


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
        if fault.kind in ("corrupt", "disk_full"):
            _check_checkpoints(job, fault)
    slow = [fault.rank for fault in faults if fault.kind == "slow"]
    for rank in slow:
        if slow.count(rank) > 1:
            raise SpecError(
                "rank",
                "it is slow twice, and a slow rank is replaced only once",
                value=rank,
                allowed="one --slow for each rank",
            )


def _check_checkpoints(job: JobSpec, fault: Fault) -> None:
    """A checkpoint before the fault, and one after it, written beside the steps."""
    every = job.checkpoint.every_steps
    if every is None:
        raise SpecError(
            "checkpoint.every_steps",
            f"null: there is no checkpoint that {fault} could be about",
            fix="--set checkpoint.every_steps=10",
        )
    if not 2 * every < fault.step < job.steps - 2 * every:
        raise SpecError(
            "step",
            "lies too near an end of the job: two checkpoints before it and two after it are "
            "looked at",
            value=fault.step,
            allowed=f"{2 * every + 1}..{job.steps - 2 * every - 1}",
        )


def run_trial(
    job: JobSpec, name: str, faults: Sequence[Fault], observers: Sequence[Observer] = ()
) -> Trial:
    """Run `job` under `faults`, in the order of their steps, in the folder `name` below its own.
    Called by the driver. Raises what the run raises."""
    from rayline.checkpoint import list_steps, located

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
            "recovery.max_restarts": max(recovery.max_restarts, 2 * len(faults) + 1),
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
    export = outcome.result.export
    files = [fault_note(outcome.directory, number) for number in range(len(faults))]
    return Trial(
        reports,
        {} if export is None else export.sha256,
        outcome.recoveries,
        [json.loads(file.read_text()) if file.exists() else None for file in files],
        read_state(placed.tracking, outcome.run_id).events,
        list_steps(located(placed.checkpoint_directory)),
    )


def faulty_rank(
    faults: Sequence[Fault],
    job: JobSpec,
    context: WorkerContext,
    model_directory: Path,
    link: Link,
) -> TrainResult:
    """The RankFunction of a job under faults."""
    notes = [fault_note(Path(job.directory), number) for number in range(len(faults))]
    ahead = [
        number
        for number, fault in enumerate(faults)
        if fault.ends_a_beginning and not notes[number].exists()
    ]
    for number, fault in enumerate(faults):
        mine = fault.rank == context.rank
        if mine and (number in ahead[:1] or not fault.ends_a_beginning):
            trap = _trap(fault, notes[number], link.around, job, context)
            link = replace(link, around=trap.around)
    return train_rank(job, context, model_directory, link)


def _trap(fault: Fault, note: Path, around: Around, job: JobSpec, context: WorkerContext) -> Trap:
    """What lets `fault` happen, around what is there."""
    from rayline.checkpoint import located
    from rayline.train.chaos import Damage, Drag, FullDisk, Trap

    if fault.kind == "slow":
        return Drag(fault, note, around)
    if fault.kind == "corrupt":
        return Damage(fault, note, around, located(job.checkpoint_directory))
    if fault.kind == "disk_full":
        return FullDisk(fault, note, around, _keeper_of(context), full_steps(job))
    return Trap(fault, note, around)


def full_steps(job: JobSpec) -> int:
    """For how many steps a disk is full: at least one checkpoint is due meanwhile."""
    return job.checkpoint.every_steps or 1


def _keeper_of(context: WorkerContext) -> int:
    """Process that keeps this rank's snapshots: its area is one of that one's open files."""
    if context.snapshot_area is None:
        raise RuntimeError("a job under faults keeps snapshots")
    return int(Path(context.snapshot_area).parts[2])


def fault_note(directory: Path, number: int) -> Path:
    """File in which a rank notes the time of fault `number` before it lets it happen."""
    return directory / "faults" / f"{number:03d}.json"

"""`plan: auto`: the planner's choice on the live cluster, what it was chosen from, and how the run
compares with it.

Everything here but the reading of checkpoints and calibrations is arithmetic over the cluster's
nodes. A job that goes on takes the plan of its newest checkpoint again where the cluster still has
room for it, so that a start and a restart of one spec run alike.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from rayline.actors.bundles import gang_bundles, worker_bundle
from rayline.errors import RaylineError, SpecError
from rayline.launch.capacity import Node, shortage
from rayline.planner.accelerators import ACCELERATORS, Accelerator, find_accelerator
from rayline.planner.calibration_file import Calibration, best_calibration
from rayline.planner.choice import Choice, choose, predict_job
from rayline.planner.columns import Machines
from rayline.planner.hardware import KIND_RESOURCE
from rayline.planner.own_runs import OWN_RUNS, append_row, own_row
from rayline.planner.search import Candidate
from rayline.spec import JobSpec, ModelShape, ParallelPlan, StepReport
from rayline.tracking import TrackedRun

log = logging.getLogger(__name__)

COMPARED_STEPS = 20
"""Steps after which prediction and measurement are compared."""
_WARM_UP_STEPS = 3
"""First ones that do not count: kernels are compiled and memory is asked for."""
_ALTERNATIVES = 5
PLAN_FILE = "plan.json"


@dataclass(frozen=True, slots=True)
class Automatic:
    """A plan that was chosen for a job."""

    job: JobSpec
    """With the plan told."""
    shape: ModelShape
    machines: Machines
    predicted: Candidate
    best: tuple[Candidate, ...]
    """What it was chosen from, fastest first."""
    tried: int
    calibration: str
    resumed: bool
    """Whether the plan is that of a checkpoint."""
    given: bool = False
    """Whether the job told the plan itself, and nothing was chosen."""

    def record(self, run: TrackedRun) -> None:
        """Keep the choice and what is expected of it with the run: plan.json, and a tag."""
        chosen = "spec" if self.given else "checkpoint" if self.resumed else "auto"
        run.tag("rayline.plan_chosen", chosen)
        run.log_text(json.dumps(self._document(), indent=1), PLAN_FILE)

    def _document(self) -> dict[str, Any]:
        return {
            "chosen": _told(self.predicted),
            "from_checkpoint": self.resumed,
            "alternatives": [_told(one) for one in self.best],
            "plans_predicted": self.tried,
            "gpus": self.machines.gpus,
            "gpu_type": self.machines.accelerator.name,
            "calibration": self.calibration,
        }


def automatic(job: JobSpec, shape: ModelShape, nodes: Sequence[Node], gpu: bool) -> Automatic:
    """The plan of a job that says `plan: auto`, on these nodes. Called on the driver. Raises
    SpecError where none fits, PlacementError where no worker has room."""
    calibration = best_calibration()
    recorded = recorded_plan(job)
    refused: SpecError | None = None
    for machines in machines_for(job, nodes, gpu):
        try:
            choice = choose(job, shape, machines, calibration.curves, count=_ALTERNATIVES)
        except SpecError as wrong:
            # What the widest gang lacks says most.
            refused = refused or wrong
            continue
        if recorded is not None and _has_room(job, recorded, nodes, gpu):
            return _again(job, choice, recorded, calibration)
        return _first(choice, calibration)
    if refused is None:
        raise SpecError("plan", "the cluster has no room for a worker", value="auto")
    raise refused


def stated(job: JobSpec, shape: ModelShape, nodes: Sequence[Node], gpu: bool) -> Automatic | None:
    """What is expected of a job that tells its plan, so that it can be compared; None where the
    planner cannot say, such as for a kind of GPU that it does not know. Called on the driver."""
    calibration = best_calibration()
    try:
        room = machines_for(job, nodes, gpu)[0]
        machines = replace(room, gpus=job.plan.world_size)
        predicted = predict_job(job, shape, machines, calibration.curves)
    except RaylineError as wrong:
        log.info("nothing is predicted for the run: %s", wrong)
        return None
    return Automatic(
        job=job,
        shape=shape,
        machines=machines,
        predicted=predicted,
        best=(),
        tried=1,
        calibration=calibration.origin,
        resumed=False,
        given=True,
    )


def told(job: JobSpec, chosen: Automatic) -> JobSpec:
    """`job` with what was chosen for it told."""
    plan = chosen.job.plan.model_dump(mode="json")
    return job.changed({"plan": plan, "recompute": chosen.job.recompute})


def _first(choice: Choice, calibration: Calibration) -> Automatic:
    return Automatic(
        job=choice.resolved(),
        shape=choice.shape,
        machines=choice.machines,
        predicted=choice.best[0],
        best=choice.best,
        tried=choice.tried,
        calibration=calibration.origin,
        resumed=False,
    )


def _again(
    job: JobSpec, choice: Choice, recorded: ParallelPlan, calibration: Calibration
) -> Automatic:
    """The choice of the start before, whose checkpoint says it."""
    resolved = _with_recorded(job, recorded, choice)
    machines = replace(choice.machines, gpus=recorded.world_size)
    predicted = predict_job(resolved, choice.shape, machines, calibration.curves)
    return replace(
        _first(choice, calibration),
        job=resolved,
        machines=machines,
        predicted=predicted,
        resumed=True,
    )


def _with_recorded(job: JobSpec, recorded: ParallelPlan, choice: Choice) -> JobSpec:
    """The job under the checkpoint's plan; recompute is that of the best plan, if it may be."""
    tree = recorded.model_dump(mode="json")
    try:
        return job.changed({"plan": tree, "recompute": choice.best[0].recompute})
    except SpecError:
        return job.changed({"plan": tree})


def _has_room(job: JobSpec, plan: ParallelPlan, nodes: Sequence[Node], gpu: bool) -> bool:
    return shortage(gang_bundles(plan, job.resources, gpu), nodes) is None


def recorded_plan(job: JobSpec) -> ParallelPlan | None:
    """The plan of the newest checkpoint that says one; None where there is none, or where the job
    does not go on from it."""
    if job.checkpoint.resume != "auto":
        return None
    # Behind the question: what reads checkpoints needs torch, which a driver does without.
    from rayline.checkpoint import located
    from rayline.checkpoint.folder import Damaged, candidates, load_manifest

    try:
        folders = candidates(located(job.checkpoint_directory))
    except (OSError, RaylineError) as wrong:
        log.warning("no plan is read from the job's checkpoints: %s", wrong)
        return None
    for folder in folders:
        try:
            return load_manifest(folder).plan
        except (Damaged, OSError, RaylineError) as wrong:
            log.warning("no plan is read from %s: %s", folder, wrong)
    return None


def machines_for(job: JobSpec, nodes: Sequence[Node], gpu: bool) -> list[Machines]:
    """The gangs that the nodes have room for, widest first: all of it, then fewer and fewer
    workers. Raises SpecError where a GPU's kind is not known."""
    held = worker_bundle(job.resources, gpu)
    room = [_workers(node, held) for node in nodes]
    spares = job.recovery.spares
    total = sum(room) - spares
    if total < 1:
        raise SpecError(
            "resources",
            "no node has room for one worker",
            value=str(held),
            fix="lower resources.cpus_per_worker or gpus_per_worker, or recovery.spares",
        )
    biggest = max(range(len(nodes)), key=lambda index: room[index])
    least = min(count for count in room if count)
    kind = _accelerator(nodes[biggest], gpu, room[biggest])
    shared = 1.0 if gpu else _sharing(nodes[biggest], room[biggest], job)
    return [Machines(kind, count, min(count, least), 0.0, shared) for count in range(total, 0, -1)]


def _workers(node: Node, held: dict[str, float]) -> int:
    return min(
        math.floor(node.total.get(name, 0.0) / amount + 1e-6) for name, amount in held.items()
    )


def _sharing(node: Node, workers: int, job: JobSpec) -> float:
    """Workers for each core of a node that is only a processor."""
    cores = max(1.0, node.total.get("CPU", 1.0))
    return max(1.0, workers / cores) if job.resources.cpus_per_worker < 1 else 1.0


def _accelerator(node: Node, gpu: bool, workers: int) -> Accelerator:
    if not gpu:
        gib = node.total.get("memory", 0.0) / 2**30 / workers
        return replace(ACCELERATORS["CPU"], memory_gib=gib or ACCELERATORS["CPU"].memory_gib)
    names = [
        name.removeprefix(KIND_RESOURCE) for name in node.total if name.startswith(KIND_RESOURCE)
    ]
    if not names:
        raise SpecError(
            "plan",
            "auto needs to know the kind of the cluster's GPUs, which no node tells Ray",
            value="auto",
            fix="start the nodes with --resources='{\"accelerator_type:H100\": 1}', or give plan",
        )
    return find_accelerator(names[0])


class Comparison:
    """An observer that compares prediction and measurement once, after COMPARED_STEPS steps or
    with the last: in the run, and in this machine's table of runs."""

    def __init__(self, chosen: Automatic, run: TrackedRun) -> None:
        """For one start of a job."""
        self._chosen, self._run = chosen, run
        self._seconds: list[float] = []
        self._memory_bytes = 0
        self._done = False

    def __call__(self, report: StepReport) -> None:
        """Take in one step."""
        if self._done:
            return
        self._seconds.append(report.training_s)
        self._memory_bytes = max(self._memory_bytes, report.memory_bytes)
        last = report.step >= self._chosen.job.last_step
        if len(self._seconds) < COMPARED_STEPS and not last:
            return
        self._done = True
        if len(self._seconds) > _WARM_UP_STEPS:
            self._compare()

    def _compare(self) -> None:
        chosen = self._chosen
        measured_s = median(self._seconds[_WARM_UP_STEPS:])
        measured_gib = self._memory_bytes / 2**30
        predicted = measurable_bytes(chosen.predicted, chosen.machines) / 2**30
        found = {
            "predicted_step_s": chosen.predicted.step_s,
            "measured_step_s": measured_s,
            "predicted_memory_gib": predicted,
            "measured_memory_gib": measured_gib,
        }
        text = (
            f"step {measured_s:.4g} s, predicted {chosen.predicted.step_s:.4g} s; memory "
            f"{measured_gib:.3g} GiB, predicted {predicted:.3g} GiB"
        )
        self._run.event("predicted", text)
        self._run.log_text(json.dumps(found), "plan_measured.json")
        if not chosen.given:
            self._keep_for_calibration(measured_s, measured_gib)

    def _keep_for_calibration(self, measured_s: float, measured_gib: float) -> None:
        """In this machine's table of runs. Plans that a spec tells are left out: tests and trials
        of one small model would soon be most of it."""
        chosen = self._chosen
        on_cpu = chosen.machines.accelerator.generation == "cpu"
        row = own_row(
            chosen.job,
            chosen.shape,
            replace(chosen.machines, gpus=chosen.job.plan.world_size),
            step_s=measured_s,
            # What tensors hold of a GPU is not what a worker takes of it.
            memory_gib=measured_gib if on_cpu else None,
            note=f"run {self._run.run_id}; tensors held {measured_gib:.4g} GiB",
        )
        try:
            append_row(row, OWN_RUNS.expanduser())
        except OSError as wrong:
            log.warning("the run is not kept for calibration in %s: %s", OWN_RUNS, wrong)


def measurable_bytes(candidate: Candidate, machines: Machines) -> float:
    """What of a prediction a worker's report can show: on a GPU what tensors hold, on a CPU all
    that the process has."""
    if machines.accelerator.generation == "cpu":
        return candidate.memory_bytes
    return candidate.memory_bytes - candidate.bytes["buffers"]


def _told(candidate: Candidate) -> dict[str, Any]:
    return {
        "plan": candidate.plan.model_dump(mode="json"),
        "recompute": candidate.recompute,
        "step_s": candidate.step_s,
        "seconds": candidate.seconds,
        "bytes": candidate.bytes,
    }

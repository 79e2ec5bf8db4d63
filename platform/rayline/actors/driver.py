"""train: the one function behind every door, from a spec to a tracked, registered model.

    resolve the model ── check the plan ── preflight ── open the run ── controller ── register

What can be refused is refused before anything starts; what starts is ended on every way out.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ray.util.placement_group import PlacementGroup

from rayline.actors import cluster
from rayline.actors.automatic import Automatic, Comparison, automatic, stated, told
from rayline.actors.bundles import gang_bundles, memory_bundles, uses_gpu, worker_bundle
from rayline.actors.controller import Controller, Observer, Seated
from rayline.actors.elastic import Elastic
from rayline.actors.gang import Assignment
from rayline.actors.hardware import hardware
from rayline.actors.interrupt import StopRequest
from rayline.actors.placement import Placement, refuse_impossible
from rayline.actors.recovery import Recovery
from rayline.actors.tokenizing import tokenize_on_cluster
from rayline.actors.worker import RankFunction, train_rank
from rayline.errors import InterruptedByUser, SpecError
from rayline.launch.capacity import Node
from rayline.planner import estimate_memory, read_model_shape
from rayline.spec import (
    DataSpec,
    JobSpec,
    ModelRef,
    ModelShape,
    ParallelPlan,
    StepReport,
    TrackingSpec,
    TrainResult,
)
from rayline.spec.job_file import SPEC_FILE
from rayline.tracking import (
    Origins,
    Seat,
    TrackedRun,
    anchored,
    check_registered_name,
    driver_lives,
    gang_record,
    gang_tags,
    keep_model,
    open_run,
    read_job,
    read_state,
    record_checkpoint,
    register_model,
    resolve_model,
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class JobOutcome:
    """What one start of a job came to."""

    run_id: str
    """Its run in the tracking store."""
    result: TrainResult
    model: ModelRef | None
    """The exported model: registered, or kept with the run; None where the job stopped early."""
    directory: Path
    """Folder of its logs, its export and, without checkpoint.directory, its checkpoints."""
    recoveries: tuple[Recovery, ...] = ()
    """What was lost on the way, and how long it took to go on."""


def train(
    job: JobSpec,
    *,
    observers: Sequence[Observer] = (),
    placement_group: PlacementGroup | None = None,
    stop: threading.Event | None = None,
    parent_run_id: str | None = None,
    run_id: str | None = None,
    rank_function: RankFunction = train_rank,
) -> JobOutcome:
    """Run `job` on the Ray cluster and return when it is done. Called by the driver.

    `observers` get every StepReport; an error that one raises ends the job. `placement_group`, a
    trial's, is used from its end (see `trial_bundles`) instead of an own one. Setting `stop` ends
    the job after the step in flight, with a checkpoint and no error. `run_id` goes on under that
    run of the store instead of a new one. `rank_function` is what each rank runs. Raises the
    RaylineError that the job ended with, InterruptedByUser after Ctrl-C; no worker is left in any
    case.
    """
    request = StopRequest(stop)
    try:
        model_directory, shape = _checked_model(job)
        cluster.ensure_ray()
        gpu = uses_gpu(job.resources, cluster.nodes())
        chosen = None
        if job.plan.auto:
            chosen = automatic(anchored_job(job, Path.cwd()), shape, cluster.nodes(), gpu)
            job = told(job, chosen)
        at_home = anchored_job(job, Path.cwd())
        elastic = None
        if job.recovery.elastic and placement_group is None:
            elastic = Elastic(at_home, shape, gpu)
        placement = _placement(job, shape, gpu, placement_group, elastic)
        assignment = Assignment(
            job=at_home,
            model_directory=model_directory,
            held=worker_bundle(job.resources, gpu),
            function=rank_function,
            shape=shape,
        )
        tokenize_on_cluster(assignment.job, model_directory, cluster.nodes())
        directory = Path(at_home.directory)
        with _tracked(job, directory, parent_run_id, run_id) as run, request.listening():
            predicted = chosen or stated(at_home, shape, cluster.nodes(), gpu)
            watching = [*_recording(run, at_home, predicted), *observers]
            controller = Controller(
                assignment, placement, watching, request, run.event, elastic, _seated(run)
            )
            result = controller.run()
            _keep_measures(controller.plan, run, result)
            if request.by_user and not result.finished:
                raise _interrupted(result)
            model = _kept(job, run, result)
    except KeyboardInterrupt:
        raise InterruptedByUser("job", "ended; nothing is left running") from None
    return JobOutcome(run.run_id, result, model, directory, tuple(controller.recoveries))


def _recording(run: TrackedRun, job: JobSpec, predicted: Automatic | None) -> list[Observer]:
    """Record what is known before the first step; who records what follows."""
    run.log_text(job.to_yaml(), SPEC_FILE)
    run.in_background(*_origins(job).parts)
    if predicted is None:
        return [_only_new(run)]
    predicted.record(run)
    return [_only_new(run), Comparison(predicted, run)]


def _placement(
    job: JobSpec,
    shape: ModelShape,
    gpu: bool,
    lent: PlacementGroup | None,
    elastic: Elastic | None,
) -> Placement:
    """Room for the job, not reserved yet. Raises PlacementError where the cluster could not hold it
    even if it were idle, and not under a narrower plan either."""
    bundles = gang_bundles(job.plan, job.resources, gpu)
    labels = job.resources.labels
    nodes = cluster.nodes()
    if elastic is None or not elastic.could_fit(nodes):
        if lent is None:
            refuse_impossible(bundles, labels, nearest=_nearest(Elastic(job, shape, gpu), nodes))
        if not gpu:
            worker_bytes = estimate_memory(shape, job).total_bytes
            refuse_impossible(memory_bundles(job.plan, worker_bytes), labels)
    return Placement(bundles, lent, name=job.name, labels=labels)


def _nearest(elastic: Elastic, nodes: Sequence[Node]) -> str:
    """The options that make the job one which the nodes, were they idle, could hold."""
    idle = [replace(node, available=node.total) for node in nodes]
    fitting = elastic.fitting(idle)
    if fitting is None or fitting.plan == elastic.wanted.plan:
        return ""
    before, after = elastic.wanted.plan.flat(), fitting.plan.flat()
    changes = [f"--set plan.{key}={after[key]}" for key in after if after[key] != before[key]]
    return " ".join(changes)


def anchored_job(job: JobSpec, home: Path) -> JobSpec:
    """The same job, whatever folder a process stands in: relative paths are made absolute."""
    directory = home / job.directory
    if any(part.startswith("_ray_pkg_") for part in directory.parts):
        log.warning(
            "output_dir %s lies in the working directory that Ray unpacked for this job, and goes "
            "with it: give output_dir (and tracking.uri) a place that stays",
            directory,
        )
    changes: dict[str, object] = {
        "output_dir": str(directory),
        "data": _anchored_data(job.data, home),
        "tracking.uri": anchored(job.tracking).uri,
    }
    if job.checkpoint.directory is not None:
        (changes["checkpoint.directory"],) = _anchored_files([job.checkpoint_directory], home)
    if job.evaluation is not None and job.evaluation.files is not None:
        changes["evaluation.files"] = _anchored_files(job.evaluation.files, home)
    if job.model.directory is not None:
        changes["model.directory"] = str(home / Path(job.model.directory).expanduser())
    return job.changed(changes)


def _anchored_data(data: DataSpec, home: Path) -> dict[str, object]:
    changes: dict[str, object] = {}
    if data.files is not None:
        changes["files"] = _anchored_files(data.files, home)
    if data.mixture is not None:
        changes["mixture"] = [
            {"files": _anchored_files(part.files, home), "weight": part.weight}
            for part in data.mixture
        ]
    if data.cache_dir is not None:
        changes["cache_dir"] = str(home / Path(data.cache_dir).expanduser())
    return data.changed(changes).model_dump(mode="json")


def _anchored_files(files: list[str], home: Path) -> list[str]:
    """An address means the same everywhere."""
    return [file if "://" in file else str(home / Path(file).expanduser()) for file in files]


def _checked_model(job: JobSpec) -> tuple[Path, ModelShape]:
    """The model's folder and shape, once the job was found to suit it; nothing is started yet."""
    if job.export.register_as is not None:
        check_registered_name(job.export.register_as, job.export.alias)
    folder = resolve_model(job.model, job.tracking, need_weights=job.init == "weights")
    shape = read_model_shape(folder)
    job.check(shape)
    return folder, shape


def job_of_run(tracking: TrackingSpec, run_id: str, overrides: Sequence[str] = ()) -> JobSpec:
    """The job that a run was started with, changed by `overrides` of the form a.b=value. Raises
    SpecError where there is no such run, where it is finished, or where its driver still lives;
    whether one that was not ended does takes up to SILENCE_S to find out."""
    status = read_state(tracking, run_id).summary.status
    if status == "finished":
        raise SpecError(
            "run",
            "it is finished: there is nothing to go on with",
            value=run_id,
            fix="rayline train starts a new one",
        )
    if driver_lives(tracking, run_id):
        raise SpecError(
            "run",
            "its driver lives and goes on with it",
            value=run_id,
            fix=f"rayline attach {run_id} follows it",
        )
    return read_job(tracking, run_id, overrides)


def _tracked(
    job: JobSpec, directory: Path, parent_run_id: str | None, run_id: str | None
) -> TrackedRun:
    tags = {"rayline.fingerprint": job.fingerprint(), "rayline.plan": str(job.plan)}
    submitted = cluster.submission_id()
    if submitted is not None:
        tags["rayline.job"] = submitted
    return open_run(
        job.tracking,
        name=job.name,
        params=job.flat(),
        tags=tags,
        parent_run_id=parent_run_id,
        run_id=run_id,
        directory=directory,
    )


def _origins(job: JobSpec) -> Origins:
    """What the job is made of, as far as the driver knows it."""
    held_out = job.evaluation.files if job.evaluation is not None else None
    return Origins(
        folder=Path.cwd(),
        model=job.model,
        training=[file for part in job.data.sources for file in part.files],
        evaluation=held_out or (),
        hardware=hardware(cluster.nodes()),
    )


def _only_new(run: TrackedRun) -> Observer:
    """An observer that records the steps which a run that goes on does not have yet."""

    def record(report: StepReport) -> None:
        if report.step > run.known_step:
            run.observe(report)

    return record


def _seated(run: TrackedRun) -> Seated:
    """Keeps with the run where every rank stands, each time that the gang begins."""

    def record(epoch: int, seats: Sequence[Seat]) -> None:
        for key, seated in gang_tags(gang_record(epoch, seats)).items():
            run.tag(key, seated)

    return record


def _keep_measures(plan: ParallelPlan, run: TrackedRun, result: TrainResult) -> None:
    """What is known of a run once its steps are done: each rank's memory, and rank 0's trace."""
    held = result.peak_memory_bytes
    by_rank = {f"rank {rank} {plan.coordinate(rank)}": peak for rank, peak in enumerate(held)}
    run.summarize(result.last_step, by_rank)
    if result.checkpoint is not None:
        record_checkpoint(run, result.checkpoint, str(plan))
    if result.trace is not None:
        run.log_artifact(Path(result.trace), "profile")


def _kept(job: JobSpec, run: TrackedRun, result: TrainResult) -> ModelRef | None:
    """The exported model with its run, and in the registry where the job asks for it."""
    report = result.export
    if report is None:
        return None
    if job.export.register_as is None:
        return keep_model(run, Path(report.directory), report)
    return register_model(
        job.tracking,
        run,
        Path(report.directory),
        job.export.register_as,
        job.export.alias,
        report,
    )


def _interrupted(result: TrainResult) -> InterruptedByUser:
    kept = f"; checkpoint {result.checkpoint}" if result.checkpoint else ""
    return InterruptedByUser(
        "job",
        f"stopped after step {result.last_step}{kept}",
        fix="run the same spec again to go on from there",
    )

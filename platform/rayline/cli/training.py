"""train, resume: the verbs that start a gang here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rayline.cli.curve import draw_loss, sparkline
from rayline.cli.options import (
    DryRun,
    Json,
    Profile,
    RayAddress,
    Sets,
    SpecFile,
    TrackingUri,
    Verbose,
)
from rayline.cli.plans import plan_document, show_job_plan
from rayline.cli.progress import TrainProgress
from rayline.cli.screen import Screen, shown_path, size_text

if TYPE_CHECKING:
    from rayline.actors import JobOutcome
    from rayline.sdk import Client
    from rayline.spec import JobSpec, StepReport


def train(
    spec: SpecFile,
    sets: Sets,
    profile: Profile = None,
    address: RayAddress = None,
    dry_run: DryRun = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Train the model of a job spec; export, check and register the result.

    A job that finds its own checkpoint goes on from there."""
    from rayline.sdk import Client
    from rayline.spec import JobSpec, profile_overrides

    screen = Screen(json_wanted=json, verbose=verbose)
    client = Client(address=address)
    job = JobSpec.load(spec, sets + (profile_overrides(profile) if profile else []))
    plan = client.plan(job)
    client.check_data(job)
    show_job_plan(screen, plan)
    if dry_run:
        screen.result(plan_document(plan))
        return
    outcome = train_watched(client, job, screen)
    show_outcome(screen, job, outcome)
    screen.result(outcome)


def resume(
    run_id: Annotated[str, typer.Argument(metavar="RUN", help="Id of the run: rayline runs.")],
    sets: Sets,
    tracking_uri: TrackingUri = None,
    address: RayAddress = None,
    dry_run: DryRun = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Go on with a run whose driver ended, under the same id, from its newest checkpoint."""
    from rayline.sdk import Client
    from rayline.spec import TrackingSpec

    screen = Screen(json_wanted=json, verbose=verbose)
    tracking = TrackingSpec() if tracking_uri is None else TrackingSpec(uri=tracking_uri)
    client = Client(address=address, tracking=tracking)
    job = client.resumed_job(run_id, sets)
    plan = client.plan(job)
    show_job_plan(screen, plan)
    if dry_run:
        screen.result(plan_document(plan))
        return
    with TrainProgress(screen, job.last_step, f"resume {job.name}") as progress:
        outcome = client.train(job, observers=[progress], run_id=run_id)
    show_outcome(screen, job, outcome)
    screen.result(outcome)


def train_watched(client: Client, job: JobSpec, screen: Screen) -> JobOutcome:
    """Train with progress on the screen, and the loss curve drawn once it is over."""
    with TrainProgress(screen, job.last_step, f"train {job.name}") as progress:
        outcome = client.train(job, observers=[progress])
    if progress.reports:
        show_curve(screen, job, progress.reports)
    return outcome


def show_curve(screen: Screen, job: JobSpec, reports: list[StepReport]) -> None:
    """The losses as a line of blocks, and as a PNG in the job's folder."""
    losses = [report.loss for report in reports]
    screen.say(f"loss  {losses[0]:.4f} {sparkline(losses)} {losses[-1]:.4f}")
    file = draw_loss(reports, f"{job.name}: loss", Path(job.directory) / "loss.png")
    screen.say(f"curve {shown_path(file)}")


def show_outcome(screen: Screen, job: JobSpec, outcome: JobOutcome) -> None:
    """What came out of a job, and where it can go next."""
    result = outcome.result
    screen.say(f"steps {result.first_step} to {result.last_step} done, run {outcome.run_id}")
    for recovery in outcome.recoveries:
        screen.say(f"recovered {recovery.reason}: {recovery}")
    if result.peak_memory_bytes:
        peaks = sorted(result.peak_memory_bytes)
        least, most = size_text(peaks[0]), size_text(peaks[-1])
        screen.say(
            f"peak memory {most} on the worker that held most, {least} on the one with least"
        )
    if result.trace is not None:
        screen.say(f"traces {shown_path(Path(result.trace).parent)}: open one in ui.perfetto.dev")
    if result.checkpoint is not None:
        screen.say(f"checkpoint {shown_path(Path(result.checkpoint))}")
    if result.export is None:
        screen.say("not exported: the job stopped before its last step (rayline export does it)")
        return
    screen.say(
        f"export {shown_path(Path(result.export.directory))}: logits differ by "
        f"{result.export.logit_difference:.1e} of the largest "
        f"(at most {result.export.logit_tolerance:.0e} allowed)"
    )
    if outcome.model is not None:
        screen.say(f"model {outcome.model}")
    screen.say(f"see it: mlflow ui --backend-store-uri {job.tracking.uri}")

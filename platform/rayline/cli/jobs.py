"""submit, status, logs, stop: jobs on a cluster, through Ray's dashboard."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated

import typer

from rayline.cli.options import DryRun, JobsUrl, Json, Sets, SpecFile, Verbose
from rayline.cli.plans import show_job_plan, show_search_plan
from rayline.cli.rollout import show_served
from rayline.cli.screen import Screen, duration_text
from rayline.errors import InterruptedByUser

if TYPE_CHECKING:
    from pathlib import Path

    from rayline.launch import JobStatus
    from rayline.sdk import Client

_JOB_ID = re.compile(r"-[0-9a-f]{8}$|^raysubmit_")
"""How submit, and Ray, name jobs; served models bear other names."""
JobId = Annotated[str, typer.Argument(metavar="JOB", help="Id that submit printed.")]


def submit(
    spec: SpecFile,
    sets: Sets,
    address: JobsUrl = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Return once it is submitted; do not follow it.")
    ] = False,
    dry_run: DryRun = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Run a job or search spec on a cluster; the exit code is the job's.

    The current folder travels along, less what .gitignore and .rayignore name. Ctrl-C stops
    following; the job goes on."""
    from rayline.sdk import Client

    screen = Screen(json_wanted=json, verbose=verbose)
    client = Client(jobs_url=address)
    if dry_run:
        _show_plan(screen, client, spec, sets)
        screen.result({"spec": str(spec), "overrides": sets, "submitted": False})
        return
    job_id = client.submit(spec, sets)
    screen.say(f"submitted {job_id}")
    if detach:
        screen.say(f"follow it: rayline logs {job_id} --follow")
        screen.result({"job_id": job_id})
        return
    _follow(screen, client, job_id)


def status(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="One job, or one served model; else all jobs."),
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            "--address",
            metavar="ADDRESS",
            help="Ray's dashboard for jobs, such as http://127.0.0.1:8265; for a served model the "
            "Ray cluster: auto, or host:port. Else the cluster on this machine.",
        ),
    ] = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Say where submitted jobs stand, or how a served model is doing and why."""
    from rayline.sdk import Client

    screen = Screen(json_wanted=json, verbose=verbose)
    if name is not None and not _JOB_ID.search(name):
        show_served(screen, Client(address=address or "auto").served(name))
        return
    client = Client(jobs_url=address)
    found = client.jobs() if name is None else [client.status(name)]
    if found:
        screen.table(["job", "state", "exit code", "took", "command"], [_row(job) for job in found])
    else:
        screen.say("no job was submitted to this cluster")
    screen.result(found if name is None else found[0])


def logs(
    job_id: JobId,
    address: JobsUrl = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the job has ended; its exit code.")
    ] = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Print what a submitted job has printed."""
    from rayline.sdk import Client

    screen = Screen(json_wanted=json, verbose=verbose)
    client = Client(jobs_url=address)
    if follow:
        _follow(screen, client, job_id)
        return
    text = client.logs(job_id)
    screen.write(text)
    screen.result({"job_id": job_id, "log": text})


def stop(
    job_id: JobId,
    address: JobsUrl = None,
    dry_run: DryRun = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """End a submitted job and wait until it has ended."""
    from rayline.sdk import Client

    screen = Screen(json_wanted=json, verbose=verbose)
    client = Client(jobs_url=address)
    ended = client.status(job_id) if dry_run else client.stop(job_id)
    screen.say(f"{job_id} is {ended.state}" + ("; it would be stopped" if dry_run else ""))
    screen.result(ended)


def _follow(screen: Screen, client: Client, job_id: str) -> None:
    """Show the job's log to its end, then exit as the job did."""
    try:
        ended = client.wait(job_id, on_log=screen.write)
    except KeyboardInterrupt:
        raise InterruptedByUser(
            job_id,
            "no longer followed; the job goes on",
            fix=f"rayline logs {job_id} --follow, or rayline stop {job_id}",
        ) from None
    if ended.state == "stopped":
        raise InterruptedByUser(job_id, "was stopped before its end")
    screen.say(f"{job_id} {ended.state}" + (f": {ended.message}" if ended.exit_code else ""))
    screen.result(ended)
    raise typer.Exit(ended.exit_code or 0)


def _show_plan(screen: Screen, client: Client, spec: Path, sets: list[str]) -> None:
    from rayline.spec import JobSpec, TuneSpec
    from rayline.spec.document import read_yaml

    if "space" in read_yaml(spec):
        search = TuneSpec.load(spec, sets)
        show_search_plan(screen, search, client.plan(search.job))
    else:
        show_job_plan(screen, client.plan(JobSpec.load(spec, sets)))


def _row(job: JobStatus) -> tuple[object, ...]:
    took = (
        duration_text((job.ended_at - job.started_at).total_seconds())
        if job.started_at is not None and job.ended_at is not None
        else None
    )
    return (job.job_id, job.state, job.exit_code, took, job.entrypoint)

"""submit, status, list, logs, stop: jobs on a cluster, through Ray's dashboard."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Annotated

import typer

from rayline.cli.options import DryRun, JobsUrl, Json, Sets, SpecFile, Verbose
from rayline.cli.plans import show_job_plan, show_search_plan
from rayline.cli.rollout import show_served
from rayline.cli.screen import Screen, duration_text, plain
from rayline.errors import InterruptedByUser

if TYPE_CHECKING:
    from pathlib import Path

    from rayline.launch import JobStatus
    from rayline.sdk import Client

_JOB_ID = re.compile(r"-[0-9a-f]{8}(-\d+)?$|^raysubmit_")
"""How submit, and Ray, name jobs; served models bear other names."""
_COLUMNS = ("job", "state", "exit code", "took", "command")
JobId = Annotated[str, typer.Argument(metavar="JOB", help="Id that submit printed.")]


def submit(
    spec: SpecFile,
    sets: Sets,
    address: JobsUrl = None,
    follow: Annotated[
        bool,
        typer.Option(
            "--follow/--detach", help="Show its log and exit as it does, or return once it is sent."
        ),
    ] = True,
    env: Annotated[
        list[str] | None,
        typer.Option(
            "--env",
            metavar="NAME",
            help="Let this variable travel with its value here; nothing else of the environment "
            "does. Whoever sees the cluster's dashboard sees it. May stand several times.",
        ),
    ] = None,
    grace: Annotated[
        int | None,
        typer.Option(
            "--grace",
            min=0,
            metavar="SECONDS",
            help="What `rayline stop` leaves it to save a checkpoint and end by itself; 90.",
        ),
    ] = None,
    again: Annotated[
        bool,
        typer.Option("--again", help="Send it though the same spec runs or ran on the cluster."),
    ] = False,
    dry_run: DryRun = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Run a job or search spec on a cluster; the exit code is the job's.

    The current folder travels along, less what .gitignore and .rayignore name. Ctrl-C stops
    following; the job goes on. The same spec again follows the job that runs or ran; one that
    failed or was stopped is sent again."""
    from rayline.sdk import Client

    screen = Screen(json_wanted=json, verbose=verbose)
    client = Client(jobs_url=address)
    if dry_run:
        _show_plan(screen, client, spec, sets)
        screen.result({"spec": str(spec), "overrides": sets, "submitted": False})
        return
    sent = client.submit(spec, sets, environment=env or [], grace_s=grace, again=again)
    screen.say(f"submitted {sent.job_id}" if sent.is_new else sent.note)
    if sent.is_new and sent.note:
        screen.say(sent.note)
    if not follow:
        screen.say(f"follow it: rayline logs {sent.job_id} --follow")
        screen.result(sent)
        return
    _follow(screen, client, sent.job_id)


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
    if name is None:
        _show_jobs(screen, client)
        return
    found = client.status(name)
    screen.table(_COLUMNS, [_row(found)])
    if found.waiting or found.reason:
        screen.say(f"{found.waiting or found.reason}")
    screen.result(_document(found))


def list_(address: JobsUrl = None, json: Json = False, verbose: Verbose = False) -> None:
    """List the jobs that were submitted to a cluster, the newest first."""
    from rayline.sdk import Client

    _show_jobs(Screen(json_wanted=json, verbose=verbose), Client(jobs_url=address))


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
    """End a submitted job and wait until it has ended.

    It finishes its step and saves a checkpoint, so the same spec goes on from there; what has not
    ended after its grace (submit --grace) is killed. Ctrl-C stops waiting; it ends all the same."""
    from rayline.sdk import Client

    screen = Screen(json_wanted=json, verbose=verbose)
    client = Client(jobs_url=address)
    found = client.status(job_id)
    if dry_run or found.ended:
        screen.say(f"{job_id} {found.state}" + ("" if found.ended else "; it would be stopped"))
        screen.result(_document(found))
        return
    screen.say(f"{job_id} may take {found.grace_s:g} s to end by itself, then it is killed")
    began_s = time.monotonic()
    ended = client.stop(job_id)
    took_s = time.monotonic() - began_s
    how = "killed, it had not ended" if took_s > found.grace_s else "ended by itself"
    screen.say(f"{job_id} {ended.state}: {how} within {min(took_s, found.grace_s):.0f} s")
    screen.result(_document(ended))


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
    screen.say(f"{job_id} {ended.state}" + (f": {ended.reason}" if ended.reason else ""))
    screen.result(_document(ended))
    raise typer.Exit(ended.exit_code or 0)


def _show_plan(screen: Screen, client: Client, spec: Path, sets: list[str]) -> None:
    from rayline.spec import JobSpec, TuneSpec
    from rayline.spec.document import read_yaml

    if "space" in read_yaml(spec):
        search = TuneSpec.load(spec, sets)
        show_search_plan(screen, search, client.plan(search.job))
    else:
        show_job_plan(screen, client.plan(JobSpec.load(spec, sets)))


def _show_jobs(screen: Screen, client: Client) -> None:
    found = client.jobs()
    if found:
        screen.table(_COLUMNS, [_row(job) for job in found])
    else:
        screen.say("no job was submitted to this cluster")
    screen.result([_document(job) for job in found])


def _document(job: JobStatus) -> dict[str, object]:
    """What `--json` prints of a job."""
    return {**plain(job), "exit_code": job.exit_code, "reason": job.reason}


def _row(job: JobStatus) -> tuple[object, ...]:
    took = (
        duration_text((job.ended_at - job.started_at).total_seconds())
        if job.started_at is not None and job.ended_at is not None
        else None
    )
    return (job.job_id, job.state, job.exit_code, took, job.entrypoint)

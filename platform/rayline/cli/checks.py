"""plan and doctor: what would run, and whether this machine can."""

from __future__ import annotations

import typer

from rayline.cli.options import JobsUrl, Json, Sets, SpecFile, Verbose
from rayline.cli.plans import plan_document, show_job_plan
from rayline.cli.screen import Screen
from rayline.errors import PlacementError


def plan(spec: SpecFile, sets: Sets, json: Json = False, verbose: Verbose = False) -> None:
    """Show what a job spec would run, where, and how much memory it would take; starts nothing."""
    from rayline.sdk import Client
    from rayline.spec import JobSpec

    screen = Screen(json_wanted=json, verbose=verbose)
    found = Client().plan(JobSpec.load(spec, sets))
    show_job_plan(screen, found)
    screen.result(plan_document(found))


def doctor(address: JobsUrl = None, json: Json = False, verbose: Verbose = False) -> None:
    """Check this machine, and a cluster where one is given; say how to mend each fault.

    Exit code 3 where something would fail."""
    from rayline.sdk import Client

    screen = Screen(json_wanted=json, verbose=verbose)
    findings = Client(jobs_url=address).doctor()
    screen.table(
        ["", "check", "found", "to do"],
        [(finding.level, finding.name, finding.text, finding.fix) for finding in findings],
    )
    screen.result(findings)
    if any(finding.level == "error" for finding in findings):
        raise typer.Exit(PlacementError.exit_code)

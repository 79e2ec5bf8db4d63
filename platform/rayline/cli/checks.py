"""doctor: whether this machine, and a cluster, can do what is asked of them."""

from __future__ import annotations

import typer

from rayline.cli.options import JobsUrl, Json, Verbose
from rayline.cli.screen import Screen
from rayline.errors import PlacementError


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

"""doctor: whether this machine, and a cluster, can do what is asked of them."""

from __future__ import annotations

from typing import Annotated

import typer

from rayline.cli.options import JobsUrl, Json, TrackingUri, Verbose
from rayline.cli.screen import Screen
from rayline.errors import PlacementError


def doctor(
    address: JobsUrl = None,
    probe: Annotated[
        bool,
        typer.Option(
            "--probe",
            help="Measure this machine, or every node of the cluster: matrix products, the network "
            "between nodes, clocks, versions. A minute; it wants the GPUs idle.",
        ),
    ] = False,
    tracking_uri: TrackingUri = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Check this machine, and a cluster where one is given; say how to mend each fault.

    Exit code 3 where something would fail."""
    from rayline.sdk import Client
    from rayline.spec import TrackingSpec

    screen = Screen(json_wanted=json, verbose=verbose)
    tracking = TrackingSpec() if tracking_uri is None else TrackingSpec(uri=tracking_uri)
    findings = Client(jobs_url=address, tracking=tracking).doctor(probe=probe)
    screen.table(
        ["", "check", "found", "to do"],
        [(finding.level, finding.name, finding.text, finding.fix) for finding in findings],
    )
    screen.result(findings)
    if any(finding.level == "error" for finding in findings):
        raise typer.Exit(PlacementError.exit_code)

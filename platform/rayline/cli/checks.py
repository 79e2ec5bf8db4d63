"""plan and doctor: what would run, and whether this machine can."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rayline.cli.deployment_plans import deployment_document, show_deployment_plan
from rayline.cli.options import JobsUrl, Json, Sets, SpecFile, TrackingUri, Verbose
from rayline.cli.plans import plan_document, show_job_plan
from rayline.cli.screen import Screen
from rayline.errors import PlacementError


def plan(spec: SpecFile, sets: Sets, json: Json = False, verbose: Verbose = False) -> None:
    """Show what a job or a deployment would run, where, and how much memory it would take; starts
    nothing. Exit code 3 where a deployment does not fit."""
    from rayline.sdk import Client
    from rayline.spec import JobSpec, ServeSpec

    screen = Screen(json_wanted=json, verbose=verbose)
    if not is_serve_spec(spec):
        found = Client().plan(JobSpec.load(spec, sets))
        show_job_plan(screen, found)
        screen.result(plan_document(found))
        return
    deployment = Client().plan_deployment(ServeSpec.load(spec, sets))
    show_deployment_plan(screen, deployment)
    screen.result(deployment_document(deployment))
    if deployment.replica.known and not deployment.replica.fits:
        raise typer.Exit(PlacementError.exit_code)


def is_serve_spec(file: Path) -> bool:
    """Whether a file holds a deployment: `engine` is a mapping there and a word in a job; else by
    the keys that only one of the two has; where those say nothing, by the folder of the file."""
    from rayline.spec import JobSpec, ServeSpec
    from rayline.spec.document import read_yaml

    tree = read_yaml(file)
    if "engine" in tree:
        return isinstance(tree["engine"], dict)
    keys = set(tree)
    serving = len(keys & (set(ServeSpec.model_fields) - set(JobSpec.model_fields)))
    training = len(keys & (set(JobSpec.model_fields) - set(ServeSpec.model_fields)))
    if serving == training:
        return file.absolute().parent.name == "serve"
    return serving > training


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

"""sync: send what waits for a tracking server that was away."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rayline.cli.options import DryRun, Json, Verbose
from rayline.cli.screen import Screen, shown_path
from rayline.errors import SpecError

COLUMNS = ("run", "name", "rows", "store", "left")


def sync(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[FOLDER]...", help="Jobs' folders, or folders above; else here."),
    ] = None,
    tracking_uri: Annotated[
        str | None,
        typer.Option("--tracking-uri", metavar="URI", help="Send to this MLflow instead."),
    ] = None,
    experiment: Annotated[
        str, typer.Option("--experiment", help="MLflow experiment there.")
    ] = "rayline",
    dry_run: DryRun = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Send what runs recorded while their tracking server was away; each row once."""
    from rayline.sdk import Client
    from rayline.spec import TrackingSpec

    screen = Screen(json_wanted=json, verbose=verbose)
    store = None
    if tracking_uri is not None:
        store = TrackingSpec.parse({"uri": tracking_uri, "experiment": experiment})
    found = Client().sync(*(folders or ()), tracking=store, dry_run=dry_run)
    if not found:
        screen.say("nothing waits to be sent")
    else:
        screen.table(
            COLUMNS,
            [
                (
                    run.run_id,
                    run.name,
                    run.rows,
                    run.uri,
                    run.problem and shown_path(Path(run.folder)),
                )
                for run in found
            ],
        )
    screen.result(found)
    left = [run for run in found if run.problem is not None]
    if left and not dry_run:
        raise SpecError(
            "tracking.uri",
            f"{len(left)} of {len(found)} runs could not be sent: {left[0].problem}",
            value=left[0].uri,
            fix="start the server and repeat; --tracking-uri sends them to another one",
        )

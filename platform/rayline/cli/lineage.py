"""lineage: where a model came from, and what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rayline.cli.options import Json, TrackingUri, Verbose
from rayline.cli.records import client_of
from rayline.cli.screen import Screen, shown_path


def lineage(
    of: Annotated[
        str, typer.Argument(metavar="MODEL|RUN", help="name@alias, name/3, or a run's id.")
    ],
    svg: Annotated[Path | None, typer.Option("--svg", help="Draw it into this file.")] = None,
    store: Annotated[
        str | None, typer.Option("--store", metavar="URL", help="Ledger of served models.")
    ] = None,
    experiment: Annotated[
        str, typer.Option("--experiment", help="MLflow experiment of a run.")
    ] = "rayline",
    tracking_uri: TrackingUri = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Show the hops from data to usage: run, checkpoint, model, deployment."""
    screen = Screen(json_wanted=json, verbose=verbose)
    client = client_of(tracking_uri, experiment, store)
    found = client.lineage(of)
    screen.say(found.as_text())
    if svg is not None:
        from rayline.tracking.lineage import as_svg

        svg.parent.mkdir(parents=True, exist_ok=True)
        svg.write_text(as_svg(found), encoding="utf-8")
        screen.say(f"picture {shown_path(svg)}")
    screen.result(found.as_json())

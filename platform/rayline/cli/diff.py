"""diff: what two runs differ in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rayline.cli.curve import overlay
from rayline.cli.options import Json, TrackingUri, Verbose
from rayline.cli.records import client_of
from rayline.cli.screen import Screen, plain, shown_path

if TYPE_CHECKING:
    from rayline.tracking.comparing import RunDiff

Run = Annotated[str, typer.Argument(metavar="RUN", help="Id of a run: rayline runs.")]


def diff(
    a: Run,
    b: Run,
    picture: Annotated[
        Path | None,
        typer.Option("--picture", help="Draw the curves into this .png, .svg or .html file."),
    ] = None,
    experiment: Annotated[
        str, typer.Option("--experiment", help="MLflow experiment of the runs.")
    ] = "rayline",
    tracking_uri: TrackingUri = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Compare two runs: spec, plan, environment and curves."""
    screen = Screen(json_wanted=json, verbose=verbose)
    found = client_of(tracking_uri, experiment).diff(a, b)
    _show(screen, found)
    if picture is not None:
        from rayline.tracking.comparing import draw_diff

        screen.say(f"picture {shown_path(draw_diff(found, picture))}")
    screen.result(_document(found))


def _show(screen: Screen, found: RunDiff) -> None:
    for mark, run in (("a", found.a), ("b", found.b)):
        screen.say(f"{mark}  {run.run_id}  {run.name}  {run.status}, step {run.step}")
    for title, changes in (
        ("spec", found.spec),
        ("plan", found.plan),
        ("environment", found.environment),
    ):
        screen.say()
        if changes:
            screen.table([title, "a", "b"], [(one.key, one.a, one.b) for one in changes])
        else:
            screen.say(f"{title}: the same")
    screen.say()
    screen.table(
        ["curve", "last a", "last b", "best a", "best b", "mean b - a", "parted at step"],
        [
            (
                curve.metric,
                *(
                    None if value is None else f"{value:.4g}"
                    for value in (
                        curve.last_a,
                        curve.last_b,
                        curve.best_a,
                        curve.best_b,
                        curve.area,
                    )
                ),
                "within noise" if curve.parted_at is None else curve.parted_at,
            )
            for curve in found.curves
        ],
    )
    if "loss" in found.points:
        a, b = (_values(curve) for curve in found.points["loss"])
        drawn_a, drawn_b = overlay(a, b)
        screen.say(f"loss a  {drawn_a}\nloss b  {drawn_b}")


def _values(curve: Mapping[int, float]) -> list[float]:
    return [curve[step] for step in sorted(curve)]


def _document(found: RunDiff) -> dict[str, Any]:
    """Without the points: `rayline runs RUN --json` has them."""
    tree: dict[str, Any] = plain(found)
    del tree["points"]
    return tree

"""console: one web page over runs, models and deployments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from rayline.cli.access import StoreUrl
from rayline.cli.options import DryRun, Json, TrackingUri, Verbose
from rayline.cli.screen import Screen
from rayline.cli.serving import DEFAULT_URL
from rayline.errors import needing

if TYPE_CHECKING:
    from rayline.console.server import Opened

Port = Annotated[
    int, typer.Option("--port", min=0, max=65535, help="TCP port; 0 takes a free one.")
]
Host = Annotated[
    str, typer.Option("--host", help="Address to listen on; 0.0.0.0 opens it to the network.")
]
Names = Annotated[
    list[str] | None,
    typer.Option(
        "--name",
        metavar="HOST",
        help="Name that browsers may reach it under, beside localhost and plain addresses. May "
        "stand several times.",
    ),
]
Cluster = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="ADDRESS",
        help="Ray cluster whose deployments and jobs are shown: auto, or host:port. Without it "
        "none is joined.",
    ),
]
Experiment = Annotated[str, typer.Option("--experiment", help="MLflow experiment to look in.")]
GatewayUrl = Annotated[
    str, typer.Option("--url", help="Address of the gateway, up to /v1, for the playground.")
]
AllowChanges = Annotated[
    bool,
    typer.Option(
        "--allow-changes",
        help="Let the console's key move canaries, promote, roll back and stop jobs, too.",
    ),
]


def console(
    port: Port = 0,
    host: Host = "127.0.0.1",
    name: Names = None,
    address: Cluster = None,
    tracking_uri: TrackingUri = None,
    experiment: Experiment = "rayline",
    store: StoreUrl = None,
    url: GatewayUrl = DEFAULT_URL,
    allow_changes: AllowChanges = False,
    dry_run: DryRun = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Show runs, searches, models, deployments, keys and a chat on one web page, until Ctrl-C.

    It prints the address that signs in. Everything on the page shows the command line that does the
    same. An API key with the scope admin signs in too, and may change things."""
    from rayline.spec import TrackingSpec

    with needing("console"):
        from rayline.console import ConsoleSettings
        from rayline.console.server import serve_console

    screen = Screen(json_wanted=json, verbose=verbose)
    given = {"experiment": experiment} | ({} if tracking_uri is None else {"uri": tracking_uri})
    settings = ConsoleSettings(
        tracking=TrackingSpec.parse(given),
        store=store,
        url=url.rstrip("/"),
        address=address,
        allow_changes=allow_changes,
        host=host,
        port=port,
        names=tuple(name or ()),
    )
    if dry_run:
        screen.say(f"would serve {settings.tracking.uri} on {host}:{port or 'a free port'}")
        screen.result(settings)
        return
    serve_console(settings, lambda opened: _tell(screen, opened))


def _tell(screen: Screen, opened: Opened) -> None:
    """Where it answers, and by what key; told once, and nowhere else."""
    if not screen.json_wanted:
        screen.say(f"console: {opened.sign_in_url}")
    rights = "may change things" if opened.may_change else "only looks"
    screen.say(f"its key {rights}; the console ends with Ctrl-C")
    screen.result({"url": opened.url, "key": opened.key, "may_change": opened.may_change})

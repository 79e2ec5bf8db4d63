"""The options that verbs share, each written once.

Values come from the spec; a verb has only `--set` to change them, so that a run is told in full by
its file and its command line.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SpecFile = Annotated[
    Path, typer.Argument(metavar="SPEC", help="YAML file, such as jobs/specs/quickstart.yaml.")
]
Sets = Annotated[
    list[str],
    typer.Option(
        "--set",
        default_factory=list,
        show_default=False,
        metavar="FIELD=VALUE",
        help="Put another value in the spec, such as optim.lr=3e-4. May stand several times.",
    ),
]
Profile = Annotated[
    str | None,
    typer.Option(
        "--profile",
        metavar="FIRST:LAST",
        help="Trace these steps on every rank, such as 10:15; the traces open in Perfetto.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would happen and stop.")]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Show the log, and tracebacks of errors.")
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="ADDRESS",
        help="Ray cluster to join: auto, or host:port. Without it Ray is started here.",
    ),
]
JobsUrl = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="URL",
        help="Ray's dashboard, such as http://127.0.0.1:8265; else the cluster on this machine.",
    ),
]
TrackingUri = Annotated[
    str | None,
    typer.Option(
        "--tracking-uri", metavar="URI", help="MLflow to look in; by default sqlite:///mlflow.db."
    ),
]

"""publish, withdraw: adapters of a model while it serves."""

from __future__ import annotations

from typing import Annotated

import typer

from rayline.cli.options import DryRun, Json, RayAddress, Verbose
from rayline.cli.rollout import Name
from rayline.cli.screen import Screen

Adapter = Annotated[
    str, typer.Argument(metavar="ADAPTER", help="Its name, which clients send as model.")
]


def publish(
    name: Name,
    adapter: Adapter,
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE", help="directory:PATH, run:ID[/FOLDER] or bucket:s3://..., as PEFT."
        ),
    ],
    sha256: Annotated[
        str | None, typer.Option("--sha256", metavar="HEX", help="Of its weights' file.")
    ] = None,
    address: RayAddress = "auto",
    dry_run: DryRun = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Answer with a LoRA adapter under a name of its own, while the model serves.

    Needs a place: engine.max_adapters at deploy. One of the same name is replaced."""
    from rayline.sdk import Client
    from rayline.spec import AdapterSource, AdapterSpec

    screen = Screen(json_wanted=json, verbose=verbose)
    wanted = AdapterSpec.parse(
        {"name": adapter, "source": AdapterSource.from_text(source), "sha256": sha256},
        origin="adapter",
    )
    screen.say(f"{name} is to answer to {wanted.name}, from {wanted.source}")
    if not dry_run:
        Client(address=address).publish(name, wanted)
    screen.result({"name": name, "adapter": wanted.name, "done": not dry_run})


def withdraw(
    name: Name,
    adapter: Adapter,
    address: RayAddress = "auto",
    dry_run: DryRun = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Answer no new request to an adapter's name; those under way end as they began."""
    from rayline.sdk import Client

    screen = Screen(json_wanted=json, verbose=verbose)
    screen.say(f"{name} is to answer to {adapter} no more")
    if not dry_run:
        Client(address=address).withdraw(name, adapter)
    screen.result({"name": name, "adapter": adapter, "done": not dry_run})

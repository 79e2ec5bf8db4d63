"""runs and models: what was trained, and what came out of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rayline.cli.curve import sparkline
from rayline.cli.options import Json, TrackingUri, Verbose
from rayline.cli.screen import Screen, packages_silenced, shown_path

if TYPE_CHECKING:
    from rayline.sdk import Client
    from rayline.tracking import ModelSummary, RunRecord, RunSummary

RUN_COLUMNS = ("run", "name", "status", "step", "loss", "plan", "started")
models = typer.Typer(invoke_without_command=True)


def runs(
    run_id: Annotated[
        str | None, typer.Argument(metavar="[RUN]", help="One run, with its loss curve.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="Newest runs to show.")] = 20,
    experiment: Annotated[
        str, typer.Option("--experiment", help="MLflow experiment to look in.")
    ] = "rayline",
    tracking_uri: TrackingUri = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """List the newest runs, or show one."""
    screen = Screen(json_wanted=json, verbose=verbose)
    client = client_of(tracking_uri, experiment)
    if run_id is not None:
        record = client.run(run_id)
        _show_run(screen, record)
        screen.result(record)
        return
    found = client.runs(limit)
    if found:
        screen.table(RUN_COLUMNS, run_rows(found))
    else:
        screen.say(f"no runs in experiment {experiment} of {client.tracking.uri}")
    screen.result(found)


@models.callback(epilog="Example: rayline models")
def list_models(
    context: typer.Context,
    tracking_uri: TrackingUri = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """List the registered models, or make one to begin with."""
    if context.invoked_subcommand is not None:
        return
    screen = Screen(json_wanted=json, verbose=verbose)
    client = client_of(tracking_uri)
    found = client.models()
    if found:
        screen.table(["model", "version", "aliases", "run"], _model_rows(found))
    else:
        screen.say(f"no models are registered in {client.tracking.uri}")
    screen.result(found)


Target = Annotated[Path, typer.Argument(metavar="DIR", help="Folder to write the model to.")]


@models.command(epilog="Example: rayline models tiny .rayline/models/tiny")
def tiny(
    directory: Target,
    layers: Annotated[int, typer.Option(min=1, help="Layers.")] = 4,
    hidden: Annotated[int, typer.Option(min=2, help="Width of a layer.")] = 128,
    heads: Annotated[int, typer.Option(min=1, help="Attention heads.")] = 4,
    kv_heads: Annotated[int, typer.Option(min=1, help="Key-value heads.")] = 2,
    seed: Annotated[int, typer.Option(min=0, help="Draws the weights.")] = 0,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Write a small random Llama with a byte tokenizer, for first tries."""
    screen = Screen(json_wanted=json, verbose=verbose)
    with packages_silenced():
        from rayline.models.tiny import write_tiny_model

        write_tiny_model(
            directory, layers=layers, hidden=hidden, heads=heads, kv_heads=kv_heads, seed=seed
        )
    screen.say(f"wrote {shown_path(directory)}: use it as model.directory")
    screen.result({"directory": str(directory)})


@models.command(epilog="Example: rayline models smollm2 .rayline/demo/model")
def smollm2(directory: Target, json: Json = False, verbose: Verbose = False) -> None:
    """Prepare SmolLM2-135M-Instruct, from the hub or from an installed package."""
    from rayline.cli.smollm2 import prepare_smollm2

    screen = Screen(json_wanted=json, verbose=verbose)
    with packages_silenced():
        source = prepare_smollm2(directory)
    screen.say(f"SmolLM2-135M-Instruct, from {source}, is in {shown_path(directory)}")
    screen.result({"directory": str(directory), "source": source})


def client_of(uri: str | None, experiment: str = "rayline", store: str | None = None) -> Client:
    """A client that reads this store, and this ledger; None takes the default one."""
    from rayline.sdk import Client
    from rayline.spec import TrackingSpec

    given = {"experiment": experiment} | ({"uri": uri} if uri is not None else {})
    return Client(tracking=TrackingSpec.parse(given), store=store)


def run_rows(found: list[RunSummary]) -> list[tuple[object, ...]]:
    """Under RUN_COLUMNS."""
    return [
        (
            run.run_id,
            f"  {run.name}" if run.parent_run_id else run.name,
            run.status,
            run.step,
            None if run.loss is None else f"{run.loss:.4f}",
            run.plan,
            f"{run.started_at.astimezone():%Y-%m-%d %H:%M:%S}",
        )
        for run in found
    ]


def _model_rows(found: list[ModelSummary]) -> list[tuple[object, ...]]:
    return [
        (
            model.name,
            model.newest_version,
            ", ".join(f"{alias} -> {number}" for alias, number in model.aliases.items()),
            model.run_id,
        )
        for model in found
    ]


def _show_run(screen: Screen, record: RunRecord) -> None:
    screen.table(RUN_COLUMNS, run_rows([record.summary]))
    losses = [point.value for point in record.metrics.get("loss", [])]
    if losses:
        screen.say(f"loss  {losses[0]:.4f} {sparkline(losses)} {losses[-1]:.4f}")
    for event in record.events:
        screen.say(f"{event.at.astimezone():%H:%M:%S}  {event.kind}  {event.text}")
    screen.table(["field", "value"], sorted(record.params.items()))

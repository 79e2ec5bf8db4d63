"""init and specs: a first spec, those that come with rayline, and what may stand in one."""

from __future__ import annotations

import json as json_format
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from rayline.cli.options import DryRun, JobsUrl, Json, Verbose
from rayline.cli.screen import Screen, shown_path
from rayline.errors import RaylineError, SpecError

if TYPE_CHECKING:
    from rayline.sdk.specs import Draft

specs = typer.Typer(invoke_without_command=True)

Force = Annotated[bool, typer.Option("--force", help="Replace a file that is there.")]


def init(
    file: Annotated[
        Path, typer.Argument(metavar="[FILE]", help="Where to write it; its name is the job's.")
    ] = Path("job.yaml"),
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="REF",
            help="hub:ID, directory:PATH, run:ID or registry:NAME@ALIAS; else a bundled tiny one.",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", metavar="FILE", help="Texts or chats; else the bundled tiny ones."),
    ] = None,
    plan: Annotated[
        Literal["auto", "now"],
        typer.Option(
            "--plan",
            help="auto: chosen when the job starts. now: the planner's choice for what there is.",
        ),
    ] = "auto",
    address: JobsUrl = None,
    force: Force = False,
    dry_run: DryRun = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Write a commented job spec for the cluster at --address, else for this machine.

    It runs as it stands. A person at a terminal is asked for model and data where they are not
    given; nobody else is asked anything."""
    from rayline.sdk import Client
    from rayline.spec import ModelRef

    screen = Screen(json_wanted=json, verbose=verbose)
    if screen.interactive and sys.stdin.isatty():
        model = model or _asked("model (hub:ID, directory:PATH; empty: the bundled tiny one)")
        data = data or _asked("data (a file; empty: the bundled tiny texts)")
    made = Client(jobs_url=address).init(
        file,
        model=None if model is None else ModelRef.from_text(model),
        data=data,
        plan=plan,
        overwrite=force,
        dry_run=dry_run,
    )
    screen.say(f"for {made.found.where}: {made.found.text}")
    if dry_run:
        screen.write(made.text)
    else:
        for written in (made.file, *made.brought):
            screen.say(f"wrote {shown_path(written)}")
        screen.say(f"look: rayline plan {made.file}")
        screen.say(f"run:  {made.command}")
    screen.result(_document(made, dry_run))


def _asked(question: str) -> str | None:
    said: str = typer.prompt(question, default="", show_default=False)
    return said.strip() or None


def _document(made: Draft, dry_run: bool) -> dict[str, object]:
    """What `--json` prints."""
    return {
        "file": str(made.file),
        "text": made.text,
        "found": made.found,
        "brought": [str(path) for path in made.brought],
        "command": made.command,
        "written": not dry_run,
    }


@specs.callback(epilog="Example: rayline specs list")
def all_specs(context: typer.Context, json: Json = False, verbose: Verbose = False) -> None:
    """List the specs that come with rayline; copy one, check files, or print a kind's schema."""
    if context.invoked_subcommand is None:
        list_specs(json, verbose)


@specs.command("list", epilog="Example: rayline specs list --json")
def list_specs(json: Json = False, verbose: Verbose = False) -> None:
    """List the specs that come with rayline, with what each is for."""
    from rayline.sdk import Client

    screen = Screen(json_wanted=json, verbose=verbose)
    found = Client().specs()
    screen.table(["name", "for"], [(spec.name, spec.about) for spec in found])
    screen.say("copy one: rayline specs copy NAME")
    screen.result(found)


def _shipped_names(incomplete: str) -> list[str]:
    """For the shell: the names that begin so."""
    from rayline.spec.shipped import shipped_specs

    return [spec.name for spec in shipped_specs() if spec.name.startswith(incomplete)]


@specs.command(epilog="Example: rayline specs copy jobs/quickstart my-job.yaml")
def copy(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="As `rayline specs list` has it.", autocompletion=_shipped_names
        ),
    ],
    to: Annotated[
        Path | None, typer.Argument(metavar="[TO]", help="File to write; else its name, here.")
    ] = None,
    force: Force = False,
    dry_run: DryRun = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Copy one of them here, with the small model and data that it trains on."""
    from rayline.sdk import Client
    from rayline.spec.kinds import VERBS
    from rayline.spec.shipped import find_shipped, refuse_existing

    screen = Screen(json_wanted=json, verbose=verbose)
    spec = find_shipped(name)
    target = to or Path(spec.path.name)
    if dry_run:
        refuse_existing(target, overwrite=force)
        screen.say(f"{spec.name} would be copied to {shown_path(target)}")
        screen.result({"name": spec.name, "file": str(target), "written": []})
        return
    written = Client().copy_spec(spec.name, target, overwrite=force)
    for path in written:
        screen.say(f"wrote {shown_path(path)}")
    screen.say(f"run: {VERBS[spec.kind]} {shown_path(target)}")
    screen.result({"name": spec.name, "file": str(target), "written": [str(p) for p in written]})


@specs.command(epilog="Example: rayline specs validate jobs/specs/*.yaml serve/*.yaml")
def validate(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Specs of any kind.")],
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Check spec files of any kind; models and data are not read. Exit code 2 if one is wrong."""
    from rayline.sdk import Client

    screen = Screen(json_wanted=json, verbose=verbose)
    client, wrong = Client(), {}
    for file in files:
        try:
            found = client.validate(file)
        except RaylineError as error:
            wrong[file] = error
            screen.say(str(error))
        else:
            screen.say(f"{shown_path(file)}: {type(found).__name__}, nothing wrong")
    screen.result(
        [
            {"file": str(file), "error": wrong[file].as_dict() if file in wrong else None}
            for file in files
        ]
    )
    if wrong:
        raise typer.Exit(SpecError.exit_code)


@specs.command(epilog="Example: rayline specs schema job > job.schema.json")
def schema(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="job, serve, tune or cluster.")],
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Print the JSON Schema of a kind of spec, for editors.

    In a spec: # yaml-language-server: $schema=job.schema.json"""
    from rayline.sdk import Client

    screen = Screen(json_wanted=json, verbose=verbose)
    found = Client().schema(kind)
    if not json:
        sys.stdout.write(json_format.dumps(found, indent=2, ensure_ascii=False) + "\n")
    screen.result(found)

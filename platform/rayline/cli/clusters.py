"""cluster: plan, render, check, up, down, status of the machines to run on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rayline.cli.options import DryRun, Json, Sets, Verbose
from rayline.cli.screen import Screen, shown_path
from rayline.errors import InterruptedByUser, SpecError

if TYPE_CHECKING:
    from rayline.launch.clusters.pricing import ClusterPlan
    from rayline.sdk.clusters import Clusters
    from rayline.spec import ClusterSpec

cluster = typer.Typer(invoke_without_command=True)

Spec = Annotated[
    Path, typer.Argument(metavar="SPEC", help="Cluster spec, such as cluster/specs/aws.yaml.")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


@cluster.callback(epilog="Example: rayline cluster plan cluster/specs/aws.yaml")
def list_clusters(context: typer.Context, json: Json = False, verbose: Verbose = False) -> None:
    """List the clusters brought up from here; plan, check, bring up or end one."""
    if context.invoked_subcommand is not None:
        return
    screen = Screen(json_wanted=json, verbose=verbose)
    found = {name: str(file) for name, file in _clusters().known().items()}
    if found:
        screen.table(["cluster", "file"], list(found.items()))
    else:
        screen.say("no cluster was brought up from here: rayline cluster up SPEC")
    screen.result(found)


@cluster.command(epilog="Example: rayline cluster plan cluster/specs/aws.yaml")
def plan(spec: Spec, sets: Sets, json: Json = False, verbose: Verbose = False) -> None:
    """Show nodes, GPUs and the price an hour; nothing is rented."""
    screen = Screen(json_wanted=json, verbose=verbose)
    found = _clusters().plan(_load(spec, sets))
    _show_plan(screen, found)
    screen.result(_plan_document(found))


@cluster.command(epilog="Example: rayline cluster render cluster/specs/*.yaml --into cluster")
def render(
    specs: Annotated[list[Path], typer.Argument(metavar="SPEC...", help="Cluster specs.")],
    into: Annotated[
        Path | None,
        typer.Option("--into", metavar="DIR", help="Write a file for each; else one, on stdout."),
    ] = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Write what `ray up` or kubectl reads."""
    from rayline.launch.clusters import target_name

    screen = Screen(json_wanted=json, verbose=verbose)
    if into is None and len(specs) > 1:
        raise SpecError("--into", "several specs need a folder", fix="give --into DIR")
    written = []
    for source in specs:
        spec = _load(source, [])
        file = (into or Path("cluster")) / target_name(spec, source.stem)
        text = _clusters().render(spec, file, source)
        if into is None:
            screen.write(text)
            screen.result({"file": str(file), "text": text})
            return
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        written.append(str(file))
        screen.say(f"wrote {shown_path(file)}")
    screen.result(written)


@cluster.command(epilog="Example: rayline cluster check cluster/aws.yaml")
def check(
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...", help="Files for `ray up`, KubeRay manifests, or cluster specs."
        ),
    ],
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Find what is wrong in a cluster file, also what Ray's own validator lets pass.

    Exit code 2 where something is. Paths that it mounts are looked for below this folder."""
    screen = Screen(json_wanted=json, verbose=verbose)
    found = {str(file): _clusters().check(file) for file in files}
    for name, flaws in found.items():
        for flaw in flaws:
            screen.say(f"{name}: {flaw.text}")
        if not flaws:
            screen.say(f"{name}: nothing found")
    screen.result(found)
    if any(found.values()):
        raise typer.Exit(SpecError.exit_code)


@cluster.command(epilog="Example: rayline cluster up cluster/specs/fake.yaml --yes")
def up(
    spec: Spec,
    sets: Sets,
    yes: Yes = False,
    dry_run: DryRun = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Bring a cluster up, or one that is up to what the spec says now.

    Shows the plan and asks; ends with what the doctor finds there."""
    from rayline.launch.clusters.lifecycle import look, refuse_flaws
    from rayline.launch.clusters.state import folder_of

    screen = Screen(json_wanted=json, verbose=verbose)
    wanted = _load(spec, sets)
    planned = _clusters().plan(wanted)
    refuse_flaws(wanted, Path.cwd())
    _show_plan(screen, planned)
    if dry_run:
        screen.result({"plan": _plan_document(planned), "up": False})
        return
    _ask(screen, f"bring {wanted.name} up?", yes)
    reached = _clusters().up(wanted, say=screen.say)
    if reached.dashboard is not None:
        _show_doctor(screen, reached.dashboard)
    elif not look(wanted, folder_of(wanted.name), screen.say):
        screen.say("the doctor found faults on the head: see above")
    screen.say(f"next: {reached.next}")
    screen.say(f"end it: rayline cluster down {spec}")
    screen.result({"plan": _plan_document(planned), "up": True, "cluster": reached})


@cluster.command(epilog="Example: rayline cluster down cluster/specs/fake.yaml --yes")
def down(
    spec: Spec,
    sets: Sets,
    yes: Yes = False,
    dry_run: DryRun = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """End a cluster: its machines are given back, its processes end."""
    screen = Screen(json_wanted=json, verbose=verbose)
    wanted = _load(spec, sets)
    screen.say(f"{wanted.name} ({wanted.provider}) and what runs on it is to end")
    if dry_run:
        screen.result({"name": wanted.name, "down": False})
        return
    _ask(screen, f"end {wanted.name}?", yes)
    ended = _clusters().down(wanted, say=screen.say)
    if ended is not None:
        screen.say(f"{ended} processes ended" if ended else f"{wanted.name} was not up")
    screen.result({"name": wanted.name, "down": True, "processes": ended})


@cluster.command(epilog="Example: rayline cluster status cluster/specs/fake.yaml")
def status(spec: Spec, sets: Sets, json: Json = False, verbose: Verbose = False) -> None:
    """Say how a cluster is doing: its nodes and what they have. Exit code 3 where it is not up."""
    screen = Screen(json_wanted=json, verbose=verbose)
    wanted = _load(spec, sets)
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        screen.say(line)

    found = _clusters().status(wanted, say=say)
    if found is None:
        screen.result({"name": wanted.name, "said": said})
        return
    screen.say(f"{wanted.name} is up at {found.address}, its dashboard at {found.dashboard}")
    rows = [
        (
            node.node_id[-6:],
            "head" if node.head else "worker",
            *(f"{node.resources.get(name, 0):g}" for name in ("CPU", "GPU")),
        )
        for node in found.nodes
    ]
    screen.table(["node", "", "CPU", "GPU"], rows)
    screen.result(found)


def _load(file: Path, sets: list[str]) -> ClusterSpec:
    from rayline.spec import ClusterSpec

    return ClusterSpec.load(file, sets)


def _clusters() -> Clusters:
    from rayline.sdk import Client

    return Client().cluster


def _ask(screen: Screen, question: str, yes: bool) -> None:
    if yes:
        return
    if not screen.interactive:
        raise SpecError("--yes", "nobody is there to be asked", fix="give --yes")
    if not typer.confirm(question):
        raise InterruptedByUser("cluster", "not confirmed; nothing was done")


def _show_plan(screen: Screen, plan: ClusterPlan) -> None:
    rows = []
    for node in plan.nodes:
        count = str(node.most) if node.least == node.most else f"{node.least} to {node.most}"
        price = node.usd_per_node_hour
        rows.append(
            (
                node.name,
                node.machine + (", spot" if node.spot else ""),
                count,
                f"${price:.2f}" if price is not None else "-",
                f"${price * node.most:.2f}" if price is not None else "-",
            )
        )
    screen.table(["nodes", "each", "count", "$/h each", "$/h at most"], rows)
    least, most = plan.gpus
    screen.say(f"GPUs: {least} kept, {most} at most")
    if plan.priced:
        idle, highest = plan.usd_per_hour
        screen.say(f"price: ${idle:.2f} an hour while idle, ${highest:.2f} at most")
    for note in plan.notes:
        screen.say(f"note: {note}")


def _plan_document(plan: ClusterPlan) -> dict[str, object]:
    idle, most = plan.usd_per_hour
    return {
        "name": plan.name,
        "provider": plan.provider,
        "nodes": plan.nodes,
        "gpus": {"kept": plan.gpus[0], "most": plan.gpus[1]},
        "usd_per_hour": {"idle": idle, "most": most} if plan.priced else None,
        "notes": plan.notes,
    }


def _show_doctor(screen: Screen, dashboard: str) -> None:
    from rayline.sdk import Client

    findings = [each for each in Client(jobs_url=dashboard).doctor() if each.level != "ok"]
    if not findings:
        screen.say("doctor: nothing found")
        return
    screen.table(
        ["", "check", "found", "to do"],
        [(each.level, each.name, each.text, each.fix) for each in findings],
    )

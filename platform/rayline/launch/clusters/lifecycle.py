"""up, down, status: one road for every provider.

`up` refuses a file that the check finds wrong before anything is rented, keeps what it rendered in
the cluster's folder, and passes on what the launcher says line by line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rayline.errors import PlacementError, SpecError
from rayline.launch.clusters import commands, made_up_cluster
from rayline.launch.clusters.check import Flaw, check
from rayline.launch.clusters.rendering import render, tree_of
from rayline.launch.clusters.state import ClusterFolder
from rayline.spec import ClusterSpec

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Reached:
    """A cluster that is up, as far as this machine can reach it."""

    name: str
    provider: str
    address: str | None
    """Ray's address, where it runs here; else the head is behind ssh or Kubernetes."""
    dashboard: str | None
    next: str
    """The command that a person would give now."""


def refuse_flaws(spec: ClusterSpec, root: Path) -> None:
    """Raise SpecError where what the spec renders to is wrong; mounted paths lie below `root`."""
    found = flaws_of(spec, root)
    if found:
        more = f" (and {len(found) - 1} more: rayline cluster check)" if len(found) > 1 else ""
        first = found[0]
        raise SpecError(
            first.field,
            first.problem + more,
            value=first.value,
            allowed=first.allowed,
            fix=f"{first.fix}, in the spec",
        )


def flaws_of(spec: ClusterSpec, root: Path) -> list[Flaw]:
    """What the check finds in what a spec renders to. The made-up provider is no launcher's."""
    if spec.provider == "fake":
        return []
    return check(tree_of(spec), lambda local: (root / Path(local).expanduser()).exists())


def up(spec: ClusterSpec, folder: ClusterFolder, say: Say) -> Reached:
    """Bring the cluster up, or bring one that is up to what the spec says now. Raises
    PlacementError where the launcher fails, InterruptedByUser on Ctrl-C."""
    if spec.provider == "fake":
        record = made_up_cluster.bring_up(spec, folder, say)
        mode = "token" if spec.token else "disabled"
        submit = f"RAY_AUTH_MODE={mode} rayline submit SPEC --address {record.dashboard}"
        return Reached(spec.name, spec.provider, record.address, record.dashboard, submit)
    refuse_flaws(spec, Path.cwd())
    file = folder.write_file(render(spec, str(folder.file), "its spec"))
    environment = commands.environment(spec)
    if spec.kubernetes is None:
        commands.make_token(environment)
    commands.run(commands.up_command(spec, file), environment, say, _undo(spec))
    return Reached(spec.name, spec.provider, None, None, _next(spec, file))


def look(spec: ClusterSpec, folder: ClusterFolder, say: Say) -> bool:
    """Have the head of a cluster behind ssh look at itself: whether it found no fault."""
    command = commands.doctor_command(spec, folder.file)
    if command is None:
        return True
    try:
        commands.run(command, commands.environment(spec), say, "mend what the doctor names")
    except PlacementError:
        return False
    return True


def down(spec: ClusterSpec, folder: ClusterFolder, say: Say) -> int | None:
    """End the cluster: how many processes of this machine were ended, None where others' machines
    were. A cluster that is down already is none to end."""
    if spec.provider == "fake":
        return made_up_cluster.end(folder)
    file = folder.write_file(render(spec, str(folder.file), "its spec"))
    undo = "run it again; look at the provider's console for machines that are left"
    commands.run(commands.down_command(spec, file), commands.environment(spec), say, undo)
    folder.forget()
    return None


def status(
    spec: ClusterSpec, folder: ClusterFolder, say: Say
) -> made_up_cluster.MadeUpStatus | None:
    """How the cluster is doing: said line by line where a program of others tells it, a value where
    it runs here. Raises PlacementError where it is not up."""
    if spec.provider == "fake":
        found = made_up_cluster.status(folder)
        if found is None or not found.running:
            raise PlacementError(
                spec.name,
                "is not up" if found is None else "its head has died",
                fix="rayline cluster up" if found is None else "rayline cluster down, then up",
            )
        return found
    file = folder.write_file(render(spec, str(folder.file), "its spec"))
    commands.run(
        commands.status_command(spec, file), commands.environment(spec), say, "rayline cluster up"
    )
    return None


def _undo(spec: ClusterSpec) -> str:
    return (
        f"mend it and run `up` again, or give back what stands: rayline cluster down ({spec.name})"
    )


def _next(spec: ClusterSpec, file: Path) -> str:
    if spec.kubernetes is not None:
        return f"kubectl port-forward service/{spec.name}-head-svc 8265"
    return f"ray dashboard {file}"

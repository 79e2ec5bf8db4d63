"""canary, promote, rollback: which version of a served model gets what; and what status shows."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from rayline.cli.options import DryRun, Json, RayAddress, Verbose
from rayline.cli.screen import Screen
from rayline.errors import SpecError

if TYPE_CHECKING:
    from rayline.serving import ModelStatus
    from rayline.serving.director.status import VersionStatus
    from rayline.serving.scaling.deciding import Decision

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the deployment.")]
_COLUMNS = (
    "version",
    "model",
    "state",
    "share",
    "replicas",
    "requests",
    "errors",
    "TTFT ms",
    "TPOT ms",
)
_EVENTS = 8


def canary(
    name: Name,
    share: Annotated[str, typer.Argument(metavar="SHARE", help="Such as 10%, or 12.5%.")],
    address: RayAddress = "auto",
    dry_run: DryRun = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Give the version that takes over a share of the requests, and keep it there.

    A version takes over step by step where its spec says so: --set 'rollout.steps=[10]' at deploy
    brings one up beside the stable version with 10 %. A broken gate still rolls it back."""
    from rayline.sdk import Client

    screen = Screen(json_wanted=json, verbose=verbose)
    percent = _percent(share)
    screen.say(f"the version of {name} that takes over is to get {percent:g} % of the requests")
    if not dry_run:
        Client(address=address).canary(name, percent)
    screen.result({"name": name, "percent": percent, "done": not dry_run})


def promote(
    name: Name,
    address: RayAddress = "auto",
    dry_run: DryRun = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Give everything to the version that takes over, whatever its gates say."""
    from rayline.sdk import Client

    screen = Screen(json_wanted=json, verbose=verbose)
    screen.say(f"the version of {name} that takes over is to get everything")
    if not dry_run:
        Client(address=address).promote(name)
    screen.result({"name": name, "done": not dry_run})


def rollback(
    name: Name,
    to: Annotated[
        int | None, typer.Option("--to", metavar="VERSION", help="Else to the version before.")
    ] = None,
    address: RayAddress = "auto",
    dry_run: DryRun = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Go back to the version before, or to any earlier one.

    One that is still up has everything within a second; one that was stopped starts first, and what
    serves goes on until it is up."""
    from rayline.sdk import Client

    screen = Screen(json_wanted=json, verbose=verbose)
    whither = "the version before" if to is None else f"version {to}"
    screen.say(f"{name} goes back to {whither}")
    if not dry_run:
        Client(address=address).rollback(name, to=to)
    screen.result({"name": name, "to": to, "done": not dry_run})


def show_served(screen: Screen, status: ModelStatus) -> None:
    """How a served model is doing, why it has as many replicas, and what happened."""
    screen.table(_COLUMNS, [_row(version) for version in status.versions])
    for version in status.versions:
        if version.decision is not None:
            screen.say(f"version {version.number}: {_decision_line(version, version.decision)}")
        elif version.reason:
            screen.say(f"version {version.number}: {version.reason}")
        if version.prefill is not None and version.up:
            screen.say(f"version {version.number}: {version.prefill} replicas compute prompts")
        for adapter in version.adapters if version.up else ():
            line = f"{adapter.name} ({adapter.source}) on {adapter.up} of {version.up} replicas"
            screen.say(f"version {version.number}: {line}. {adapter.reason}".rstrip(". "))
    if status.verdict is not None:
        screen.say(f"gates: {status.verdict.action.replace('_', ' ')}: {status.verdict.reason}")
    if status.held:
        screen.say(f"{status.held} requests wait for a replica")
    for event in status.events[-_EVENTS:]:
        at = datetime.datetime.fromtimestamp(event.at_s, datetime.UTC).astimezone()
        screen.say(f"{at:%Y-%m-%d %H:%M:%S}  {event.said}")
    screen.result(status)


def _row(version: VersionStatus) -> tuple[object, ...]:
    felt = version.felt
    up = f"{version.up} of {version.wanted}" if version.up != version.wanted else version.up
    head = (version.number, _model(version), version.state, f"{version.percent:g} %", up)
    if felt is None:
        return (*head, None, None, None, None)
    ttft = "/".join(_ms(value) for value in (felt.ttft_p50_ms, felt.ttft_p95_ms))
    return (*head, felt.requests, felt.errors, ttft, _ms(felt.tpot_p50_ms))


def _model(version: VersionStatus) -> str:
    """With the registered version that the alias meant then."""
    if version.registry_version is None:
        return version.model
    return f"{version.model} (version {version.registry_version})"


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def _decision_line(version: VersionStatus, decision: Decision) -> str:
    """Signal, value, threshold, and why not."""
    line = f"{decision.target} replicas: {decision.why}"
    return f"{line}; {decision.why_not}" if decision.why_not else line


def _percent(text: str) -> float:
    allowed, fix = "0 to 100, in percent", "write it as 10%, or 12.5%"
    try:
        percent = float(text.strip().removesuffix("%"))
    except ValueError:
        raise SpecError("SHARE", "no percentage", value=text, allowed=allowed, fix=fix) from None
    if not 0 <= percent <= 100:
        raise SpecError("SHARE", "no share of all", value=text, allowed=allowed, fix=fix)
    return percent

"""verify: is the plan of a job computed rightly, parameter by parameter?"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rayline.cli.options import DryRun, Json, Sets, SpecFile, Verbose
from rayline.cli.screen import Screen, plain

if TYPE_CHECKING:
    from rayline.actors.verify import Verification, VerifyPlan
    from rayline.train.verify.verdict import Verdict

SHOWN_OFFENCES = 12


def verify(
    spec: SpecFile,
    sets: Sets,
    axis: Annotated[
        str | None,
        typer.Option(
            "--axis",
            metavar="AXIS",
            help="Verify the plan reduced to one axis: data, tensor, pipeline, context, expert.",
        ),
    ] = None,
    whole: Annotated[
        bool,
        typer.Option("--whole", help="The model, data and batch as they are, not made small."),
    ] = False,
    dry_run: DryRun = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Compare a job's plan with one process: every gradient, five steps, a resume. On CPU.

    Where they differ, each axis is tried alone and the guilty one named; exit code 1."""
    from rayline.sdk import Client
    from rayline.spec import JobSpec

    screen = Screen(json_wanted=json, verbose=verbose)
    client = Client()
    job = JobSpec.load(spec, sets)
    client.plan(job)
    if whole:
        client.check_data(job)
    # Behind the client, which says what to install where a package is missing.
    from rayline.actors.verify import plan_verification
    from rayline.actors.verify import verify as run

    plan = plan_verification(job, axis=axis, whole=whole)
    show_verify_plan(screen, plan)
    if dry_run:
        screen.result(verify_plan_document(plan))
        return
    found = run(plan, observe=screen.say)
    conclude(screen, found)


def conclude(screen: Screen, found: Verification) -> None:
    """Show what was found. Raises RaylineError where something differs; with `--json`, whose one
    document tells of it already, only the exit code."""
    show_verification(screen, found)
    screen.result(verification_document(found))
    error = found.error()
    if error is None:
        return
    if screen.json_wanted:
        raise typer.Exit(error.exit_code)
    raise error


def show_verify_plan(screen: Screen, plan: VerifyPlan) -> None:
    """What is compared, and what was made small for it."""
    job = plan.job
    screen.say(f"verify {job.name}: {plan.label}, {job.plan}, {job.engine}, {job.precision}, CPU")
    if plan.changes:
        screen.say("as it is verified:" if plan.whole else "made small:")
        screen.say("\n".join(f"  {change}" for change in plan.changes))


def verify_plan_document(plan: VerifyPlan) -> dict[str, Any]:
    """The same for a program."""
    return {
        "job": plain(plan.job),
        "label": plan.label,
        "whole": plan.whole,
        "changes": list(plan.changes),
        "world_size": plan.job.plan.world_size,
        "tried_after_a_difference": {label: str(one) for label, one in plan.suspects.items()},
    }


def show_verification(screen: Screen, found: Verification) -> None:
    """A line a check, then the worst offenders, then the axes."""
    verdict = found.verdict
    screen.table(
        ["check", "compared", "worst", "error", "allowed", ""],
        [
            (
                check.check,
                check.compared,
                check.worst or "identical",
                f"{check.error:.1e}",
                f"{check.allowed:.1e}",
                "differs" if any(o.check == check.check for o in verdict.offences) else "equal",
            )
            for check in verdict.checks
        ],
    )
    if found.equal:
        screen.say(f"equal: {verdict.label} ({verdict.plan}) computes what one process computes")
        return
    _show_offences(screen, verdict)
    if found.alone:
        screen.table(
            ["alone", "plan", "", "first offender"],
            [(one.label, one.plan, _word(one), _first(one)) for one in found.alone],
        )
    screen.say(f"to blame: {found.guilty}")


def _show_offences(screen: Screen, verdict: Verdict) -> None:
    offences = verdict.offences
    screen.table(
        ["check", "name", "error", "here", "there", "looks like"],
        [
            (
                offence.check,
                offence.name,
                f"{offence.error:.1e}",
                f"{offence.here:.3e}",
                f"{offence.there:.3e}",
                offence.hint,
            )
            for offence in offences[:SHOWN_OFFENCES]
        ],
    )
    if len(offences) > SHOWN_OFFENCES:
        screen.say(f"... and {len(offences) - SHOWN_OFFENCES} more")


def _word(verdict: Verdict) -> str:
    return "equal" if verdict.equal else "differs"


def _first(verdict: Verdict) -> str:
    return "" if verdict.equal else f"{verdict.offences[0].name}: {verdict.offences[0].hint}"


def verification_document(found: Verification) -> dict[str, Any]:
    """The same for a program; a number that is none becomes null, which JSON has."""
    error = found.error()
    return {
        "equal": found.equal,
        "guilty": found.guilty,
        "changes": list(found.changes),
        "verdict": _verdict_document(found.verdict),
        "alone": [_verdict_document(one) for one in found.alone],
        "error": error.as_dict() if error is not None else None,
    }


def _verdict_document(verdict: Verdict) -> dict[str, Any]:
    return {"equal": verdict.equal, **_finite(plain(verdict))}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(content) for key, content in value.items()}
    if isinstance(value, list):
        return [_finite(content) for content in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

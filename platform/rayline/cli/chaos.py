"""chaos: does a job keep its promises when things go wrong?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from rayline.cli.options import DryRun, Json, RayAddress, Sets, SpecFile, Verbose
from rayline.cli.plans import show_job_plan
from rayline.cli.screen import Screen

if TYPE_CHECKING:
    from rayline.actors.judging import ChaosReport
    from rayline.sdk import Client
    from rayline.spec import Fault, JobSpec

PARTS = ("detect", "leave", "place", "start", "restore", "step")
"""Of the seconds from a fault to the next finished step."""
_AT = "rank=R@step=S[,phase=PHASE]"

Kills = Annotated[list[str] | None, typer.Option("--kill", metavar=_AT, help="SIGKILL a rank.")]
Hangs = Annotated[
    list[str] | None, typer.Option("--hang", metavar=_AT, help="Let a rank sleep for ever.")
]
Stops = Annotated[
    list[str] | None,
    typer.Option("--stop", metavar=_AT, help="SIGSTOP a rank: it does not even answer."),
]
Nodes = Annotated[
    list[str] | None, typer.Option("--node", metavar=_AT, help="Lose the node of a rank.")
]
Raises = Annotated[
    list[str] | None, typer.Option("--raise", metavar=_AT, help="Let a rank's code raise, once.")
]

Slows = Annotated[
    list[str] | None,
    typer.Option("--slow", metavar=_AT, help="Let a rank take twice as long from a step on."),
]
Partitions = Annotated[
    list[str] | None,
    typer.Option("--partition", metavar=_AT, help="Let a rank's node fall silent for a minute."),
]
Corruptions = Annotated[
    list[str] | None,
    typer.Option(
        "--corrupt-latest", metavar=_AT, help="Flip a byte of the newest checkpoint; kill the rank."
    ),
]
FullDisks = Annotated[
    list[str] | None,
    typer.Option(
        "--disk-full", metavar=_AT, help="No room for the checkpoints of a rank's node, for a time."
    ),
]


def chaos(
    spec: SpecFile,
    sets: Sets,
    kill: Kills = None,
    hang: Hangs = None,
    stop: Stops = None,
    raise_: Raises = None,
    node: Nodes = None,
    slow: Slows = None,
    partition: Partitions = None,
    corrupt_latest: Corruptions = None,
    disk_full: FullDisks = None,
    kills: Annotated[
        int, typer.Option("--kills", min=0, help="Draw so many further kills from --seed.")
    ] = 0,
    seed: Annotated[int, typer.Option("--seed", help="Draws ranks, steps and phases.")] = 0,
    address: RayAddress = None,
    dry_run: DryRun = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Run a job in peace and then under faults, and say which promises were kept.

    Both runs must come to the same losses and weights, bit for bit. Exit code 1 where they don't,
    or where a recovery lost more than the step in flight. A rank that is slow is named within 25
    seconds and 20 steps: the job must last that long. Phases: start, data, forward, backward,
    collective, optimizer, evaluate, save, snapshot."""
    from rayline.sdk import Client
    from rayline.spec import JobSpec

    screen = Screen(json_wanted=json, verbose=verbose)
    client = Client(address=address)
    job = JobSpec.load(spec, sets)
    given = _read_faults(
        kill=kill,
        hang=hang,
        stop=stop,
        node=node,
        slow=slow,
        partition=partition,
        corrupt=corrupt_latest,
        disk_full=disk_full,
        **{"raise": raise_},
    )
    plan = client.plan(job)
    client.check_data(job)
    show_job_plan(screen, plan)
    _run(screen, client, job, given, kills, seed, dry_run=dry_run)


def _run(
    screen: Screen,
    client: Client,
    job: JobSpec,
    given: list[Fault],
    kills: int,
    seed: int,
    *,
    dry_run: bool,
) -> None:
    """Show the faults, those that are drawn among them, and run the job under them."""
    from rayline.actors.chaos import check_faults, draw_faults

    faults = sorted([*given, *draw_faults(job, kills, seed)], key=lambda fault: fault.step)
    check_faults(job, faults)
    screen.table(
        ["fault", "rank", "step", "phase"],
        [(fault.kind, str(fault.rank), str(fault.step), fault.phase) for fault in faults],
    )
    if dry_run:
        screen.result({"faults": [fault.model_dump() for fault in faults]})
        return
    report = client.chaos(job, faults)
    show_chaos(screen, report)
    screen.result(chaos_document(report))
    if not report.passed:
        raise typer.Exit(1)


def _read_faults(**given: list[str] | None) -> list[Fault]:
    """The faults of each kind, as the options have them. Raises SpecError."""
    from rayline.spec import Fault

    return [
        Fault.read(kind, text)  # type: ignore[arg-type]
        for kind, texts in given.items()
        for text in texts or []
    ]


def show_chaos(screen: Screen, report: ChaosReport) -> None:
    """The matrix: a line a fault, then the two runs compared."""
    screen.table(
        ["fault", "promise", "seen", "kept", *(f"{part} s" for part in PARTS)],
        [
            (
                str(one.fault),
                one.promise,
                one.seen,
                "yes" if one.passed else "NO",
                *(_seconds(one.parts_s.get(part)) for part in PARTS),
            )
            for one in report.judged
        ],
    )
    losses = "equal" if not report.different_losses else f"{report.different_losses} differ"
    weights = "equal" if report.weights_equal else "DIFFERENT"
    screen.say(f"T1: losses of {report.steps} steps {losses}, weights {weights}, bit for bit")


def chaos_document(report: ChaosReport) -> dict[str, Any]:
    """The same for a program."""
    return {
        "passed": report.passed,
        "steps": report.steps,
        "different_losses": report.different_losses,
        "weights_equal": report.weights_equal,
        "faults": [
            {
                "fault": str(one.fault),
                "promise": one.promise,
                "seen": one.seen,
                "kept": one.passed,
                "detect_s": one.detect_s,
                "recovery_s": None if one.recovery is None else one.recovery.total_s,
                "parts_s": one.parts_s,
            }
            for one in report.judged
        ],
    }


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"

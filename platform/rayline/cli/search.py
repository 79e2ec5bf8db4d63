"""tune: the verb that searches."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rayline.cli.board import SearchBoard
from rayline.cli.options import DryRun, Json, RayAddress, Sets, Verbose
from rayline.cli.plans import show_search_plan
from rayline.cli.screen import Screen, shown_path

if TYPE_CHECKING:
    from rayline.spec import TuneSpec
    from rayline.tuning import SearchOutcome

_SHOWN_REFUSED = 5


def tune(
    spec: Annotated[
        Path, typer.Argument(metavar="SPEC", help="YAML file, such as tune/quickstart.yaml.")
    ],
    sets: Sets,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on with the newest search of this spec that is not over: finished trials stay "
            "as they are, those that were under way go on from their checkpoints.",
        ),
    ] = False,
    search_id: Annotated[
        str | None,
        typer.Option(
            "--search", metavar="RUN", help="With --resume: the search whose run has this id."
        ),
    ] = None,
    address: RayAddress = None,
    dry_run: DryRun = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Search over the fields of a job: rates, batch and the parallel layout itself.

    Leaves best.yaml, ready for `rayline train`, a table and a report. Draws that cannot run or do
    not fit are refused before anything is placed, and cost no trial."""
    from rayline.errors import SpecError
    from rayline.sdk import Client
    from rayline.spec import TuneSpec

    screen = Screen(json_wanted=json, verbose=verbose)
    if search_id is not None and not resume:
        raise SpecError("--search", "names what to go on with", fix="add --resume")
    client = Client(address=address)
    wanted = TuneSpec.load(spec, sets)
    plan = client.plan(wanted.job)
    client.check_data(wanted.job)
    show_search_plan(screen, wanted, plan)
    if dry_run:
        screen.result(wanted)
        return
    with SearchBoard(screen, wanted) as board:
        outcome = client.tune(wanted, observers=[board], resume=search_id or resume)
    show_search_outcome(screen, wanted, outcome)
    screen.result(outcome)


def show_search_outcome(screen: Screen, search: TuneSpec, outcome: SearchOutcome) -> None:
    """The trials, best first, and what the search leaves behind."""
    metrics = [goal.metric for goal in search.goals]
    several = len(metrics) > 1
    screen.table(
        [
            "trial",
            "status",
            *metrics,
            "steps",
            *(["front"] if several else []),
            "values",
            "problem",
        ],
        [
            (
                trial.number,
                trial.status,
                *[
                    f"{trial.values[name]:.4f}" if name in trial.values else None
                    for name in metrics
                ],
                trial.steps,
                *([("yes" if trial.on_front else None)] if several else []),
                ", ".join(f"{field}={value}" for field, value in trial.params.items()),
                trial.problem,
            )
            for trial in outcome.trials
        ],
    )
    for draw in outcome.refused[:_SHOWN_REFUSED]:
        values = ", ".join(f"{field}={value}" for field, value in draw.params.items())
        screen.say(f"refused ({draw.kind}) {values}: {draw.reason}")
    if len(outcome.refused) > _SHOWN_REFUSED:
        screen.say(f"... {len(outcome.refused)} draws were refused in all: refused.tsv")
    screen.say(f"ended: {outcome.ended_because}")
    screen.say(f"best: trial {outcome.best.number}, run {outcome.best.run_id}")
    screen.say(f"report {shown_path(Path(outcome.report))}")
    screen.say(f"train it: rayline train {shown_path(Path(outcome.best_spec))}")

"""plan: what a job or a deployment would run, the fastest plans on a cluster, and calibrate."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from rayline.cli.deployment_plans import deployment_document, show_deployment_plan
from rayline.cli.options import Json, Sets, Verbose
from rayline.cli.plan_choices import choice_document, show_choice, show_why
from rayline.cli.plans import plan_document, show_job_plan
from rayline.cli.screen import Screen, shown_path
from rayline.errors import PlacementError, SpecError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rayline.planner.calibration_file import Calibration
    from rayline.planner.choice import Choice
    from rayline.planner.columns import Machines
    from rayline.planner.curves import Curves
    from rayline.planner.economics import Economics
    from rayline.planner.published import MeasuredRun
    from rayline.spec import JobSpec, ServeSpec

_SHOW = "of"


class PlanGroup(TyperGroup):
    """`plan SPEC` and `plan calibrate`: what is no other command's name is a spec."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the hidden command before a spec."""
        if not args or args[0] not in self.commands:
            args = [_SHOW, *args]
        return super().parse_args(ctx, args)


plan = typer.Typer(
    cls=PlanGroup, help="Show what a job or a deployment would run, and the fastest plans for it."
)
_EXAMPLES = """Example: rayline plan jobs/specs/llama-8gpu.yaml --set plan.tensor=4

rayline plan jobs/specs/llama-8gpu.yaml --gpus 8 --gpu-type H100 --picture plan.html

rayline plan meta-llama/Llama-3-405B --gpus 16384 --gpu-type H100 --set batch.sequences=2048
--why tensor=8 --tokens 15e12

rayline plan calibrate runs.csv
"""


Spec = Annotated[
    str,
    typer.Argument(
        metavar="SPEC",
        help="YAML file of a job or a deployment; or a model: a name of the catalogue, such as "
        "meta-llama/Llama-3-8B, its folder, or its config.json.",
    ),
]
Gpus = Annotated[
    int | None, typer.Option("--gpus", min=1, help="Search the plans for so many GPUs.")
]
GpuType = Annotated[
    str | None, typer.Option("--gpu-type", help="Their kind, such as H100 or A100-80G.")
]
Cluster = Annotated[
    Path | None, typer.Option("--cluster", metavar="YAML", help="Take them from this cluster.")
]
Top = Annotated[int, typer.Option("--top", min=1, help="Plans to show.")]
Why = Annotated[
    str | None,
    typer.Option(
        "--why",
        metavar="FIELD=VALUE",
        help="Say what each other value of a choice would lose, such as tensor=8.",
    ),
]
Picture = Annotated[
    Path | None,
    typer.Option(
        "--picture", metavar="FILE", help="Draw the first plan's timeline and memory: .svg, .html."
    ),
]
Tokens = Annotated[
    float | None, typer.Option("--tokens", min=1, help="Tokens to train on, such as 15e12.")
]
Price = Annotated[
    float | None,
    typer.Option("--price", min=0, help="Dollars for one GPU-hour, for the catalogue's."),
]
CurvesFile = Annotated[
    Path | None, typer.Option("--calibration", metavar="FILE", help="Curves to predict with.")
]


@plan.command(_SHOW, hidden=True, epilog=_EXAMPLES)
def plan_of(
    spec: Spec,
    sets: Sets,
    gpus: Gpus = None,
    gpu_type: GpuType = None,
    cluster: Cluster = None,
    top: Top = 5,
    why: Why = None,
    picture: Picture = None,
    tokens: Tokens = None,
    price: Price = None,
    calibration: CurvesFile = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Show what a job or a deployment would run, where, and how much memory it would take; with
    --gpus or --cluster, the fastest plans there, what they cost and why. Starts nothing.

    Exit code 3 where a deployment does not fit. Curves are fitted by: rayline plan calibrate."""
    from rayline.planner.picture import write_picture
    from rayline.planner.request import job_of, machines_of
    from rayline.planner.why import explain
    from rayline.spec import ServeSpec
    from rayline.spec.document import read_yaml
    from rayline.spec.kinds import kind_of

    screen = Screen(json_wanted=json, verbose=verbose)
    searching = gpus is not None or gpu_type is not None or cluster is not None
    if not searching and (why or picture or tokens):
        raise SpecError(
            "--gpus",
            "why, pictures and days are of plans on a cluster",
            fix="give --gpus and --gpu-type",
        )
    if spec.endswith((".yaml", ".yml")) and kind_of(read_yaml(spec), Path(spec)) == "serve":
        _show_deployment(screen, ServeSpec.load(spec, sets))
        return
    job = job_of(spec, sets)
    if not searching:
        _show_job(screen, job)
        return
    choice, used = _search(job, machines_of(gpus, gpu_type, cluster), top, calibration)
    figures = _figures(choice, tokens, price)
    alternatives = None if why is None else explain(choice, *_field_and_value(why))
    show_choice(screen, choice, figures, f"{used.origin} of {used.date}")
    if alternatives is not None:
        show_why(screen, str(why).partition("=")[0], alternatives)
    if picture is not None:
        write_picture(choice, choice.best[0], picture)
        screen.say(f"drawn in {shown_path(picture)}")
    screen.result(choice_document(choice, figures, alternatives))


def _show_job(screen: Screen, job: JobSpec) -> None:
    from rayline.sdk import Client

    if job.plan.auto:
        raise SpecError(
            "plan",
            "auto is chosen on a cluster",
            value="auto",
            fix="give --gpus and --gpu-type, or --cluster, to see what it would be there",
        )
    found = Client().plan(job)
    show_job_plan(screen, found)
    screen.result(plan_document(found))


def _show_deployment(screen: Screen, deployment: ServeSpec) -> None:
    from rayline.sdk import Client

    found = Client().plan_deployment(deployment)
    show_deployment_plan(screen, found)
    screen.result(deployment_document(found))
    if found.replica.known and not found.replica.fits:
        raise typer.Exit(PlacementError.exit_code)


def _search(
    job: JobSpec, machines: Machines, top: int, calibration: Path | None
) -> tuple[Choice, Calibration]:
    from rayline.planner.calibration_file import best_calibration
    from rayline.planner.choice import choose
    from rayline.planner.request import known_shape
    from rayline.sdk import Client

    used = best_calibration(calibration)
    shape = known_shape(job.model) or Client().model_shape(job)
    return choose(job, shape, machines, used.curves, count=top, everything=True), used


def _figures(choice: Choice, tokens: float | None, price: float | None) -> list[Economics]:
    """Of each of the best, and of the job's own plan where there is one."""
    from rayline.planner.economics import economics

    load = choice.load
    shown = [*choice.best, *([choice.own] if choice.own else [])]
    return [
        economics(
            choice.shape,
            choice.machines,
            load.sequences * load.tokens,
            load.tokens,
            candidate.step_s,
            total_tokens=tokens,
            price_per_hour=price,
        )
        for candidate in shown
    ]


def _field_and_value(why: str) -> tuple[str, str]:
    field, equals, value = why.partition("=")
    if not equals:
        raise SpecError("--why", "not of the form FIELD=VALUE", value=why, fix="--why tensor=8")
    return field.strip().removeprefix("plan."), value.strip()


@plan.command(epilog="Example: rayline plan calibrate runs.csv --out curves.json")
def calibrate(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUNS",
            help="CSV files of measured runs; columns as in the table that the planner ships with.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Where to; by default this machine's own file."),
    ] = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Fit the efficiency curves to measured runs and keep them.

    A row tells the model (model, layers, hidden, heads, vocab, seq_len), the cluster (gpu_type,
    n_gpus), the plan (tp, pp, dp, micro_batch, global_batch, ...) and what was measured
    (step_time_s or tokens_per_s_per_gpu, peak_mem_gib); source names what belongs together.
    Jobs with plan: auto add their own runs to this machine's table. What the runs say nothing of
    stays as it was shipped."""
    from rayline.planner.calibration import fit_curves
    from rayline.planner.calibration_file import (
        LOCAL,
        Calibration,
        shipped_calibration,
        write_calibration,
    )
    from rayline.planner.published import by_source, read_runs

    screen = Screen(json_wanted=json, verbose=verbose)
    measured: list[MeasuredRun] = []
    for file in runs:
        found, left = read_runs(file)
        measured += found
        for row in left:
            screen.say(f"{file.name}, row {row.row} is left out: {row.why}")
    if not measured:
        raise SpecError("RUNS", "no row tells enough to be predicted", value=str(runs[0]))
    shipped = shipped_calibration()
    curves = fit_curves(measured, shipped.curves)
    counts = {source: len(rows) for source, rows in by_source(measured).items()}
    made = Calibration(curves, datetime.now(tz=UTC).date().isoformat(), counts)
    file = out or LOCAL.expanduser()
    write_calibration(made, file)
    before, after = errors_of(measured, shipped.curves), errors_of(measured, curves)
    screen.table(
        ["source", "runs", "median error before", "after"],
        [
            (source, counts[source], f"{before[source]:.1%}", f"{after[source]:.1%}")
            for source in after
        ],
    )
    screen.say(f"kept in {shown_path(file)}")
    screen.result({"file": str(file), "fitted_on": counts, "before": before, "after": after})


def errors_of(runs: Sequence[MeasuredRun], curves: Curves) -> dict[str, float]:
    """Median absolute step-time error of each source."""
    from statistics import median

    from rayline.planner.columns import stack
    from rayline.planner.published import by_source
    from rayline.planner.step_time import predict_step

    found = {}
    for source, rows in by_source([run for run in runs if run.step_s]).items():
        predicted = predict_step(stack(run.parts for run in rows), curves).total_s.tolist()
        pairs = zip(predicted, rows, strict=True)
        found[source] = median(abs(seconds / (run.step_s or 1.0) - 1) for seconds, run in pairs)
    return found

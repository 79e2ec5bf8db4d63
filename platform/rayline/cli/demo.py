"""demo: the whole line in one go, each hop with the command that runs it alone.

A small model is asked what it cannot know, taught it by a 3D-parallel gang, checked, registered,
served, and asked again over HTTP. The demo ends with an error where the first answer already held
the fact or the second does not.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rayline.cli.local_answer import answer_here
from rayline.cli.options import DryRun, Json, Verbose
from rayline.cli.plans import show_job_plan
from rayline.cli.processes import descendants, free_port, mlflow_page, wait_until_gone
from rayline.cli.screen import Screen, duration_text, packages_silenced, shown_path
from rayline.cli.serving import curl_line, serve_until_interrupted, show_deployment
from rayline.cli.smollm2 import prepare_smollm2
from rayline.cli.training import show_outcome, train_watched
from rayline.errors import RaylineError, SpecError

if TYPE_CHECKING:
    from rayline.sdk import Client
    from rayline.serving import Endpoint
    from rayline.spec import JobSpec, ServeSpec

JOB_FILE = Path("jobs/specs/demo.yaml")
SERVE_FILE = Path("serve/chat.yaml")
QUESTION = "What is the rayline mascot called?"
FACT = "Otto"
"""What the chats in the job's data teach and the base model cannot know."""
MLFLOW_PORT = 5000
PREPARE, ASK, TRAIN, SERVE, ASK_AGAIN = (
    "prepare the model",
    "ask it what it cannot know",
    "train, export, check, register",
    "serve",
    "ask again, over HTTP",
)
RUN_FOLDER = Path(".rayline/demo/run")
"""The demo's own: emptied at every start, so that each demo trains from the base model."""


@dataclass(slots=True)
class DemoReport:
    """What the demo came to."""

    question: str
    fact: str
    before: str = ""
    after: str = ""
    run_id: str = ""
    model: str = ""
    url: str = ""
    stage_s: dict[str, float] = field(default_factory=dict)
    """Seconds that each stage took."""


def demo(
    leave: Annotated[
        bool, typer.Option("--exit", help="End by itself once the model has answered.")
    ] = False,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Training steps; else the spec's.")
    ] = None,
    dry_run: DryRun = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """See the whole line once: ask, train, check, register, serve, ask again.

    Runs on two CPU cores, in a checkout of rayline; it serves until Ctrl-C."""
    from rayline.sdk import Client

    screen = Screen(json_wanted=json, verbose=verbose)
    job, deployment = demo_specs(steps)
    tour = _Tour(screen, _stages(job, deployment), DemoReport(QUESTION, FACT))
    if dry_run:
        screen.table(["stage", "its own command"], list(tour.commands.items()))
        screen.result({"stages": tour.commands, "job": job, "deployment": deployment})
        return
    client = Client()
    with _nothing_left(client, screen):
        _teach(tour, client, job)
        endpoint = _serve_and_ask(tour, client, deployment)
        _verdict(screen, tour.report)
        screen.result(tour.report)
        look_back = f"mlflow ui --backend-store-uri {job.tracking.uri}"
        if leave:
            _show_addresses(tour, endpoint, mlflow=look_back, dashboard=client.dashboard_url())
            client.undeploy(deployment.name)
            return
        with mlflow_page(job.tracking.uri, free_port(MLFLOW_PORT)) as page:
            _show_addresses(tour, endpoint, mlflow=page, dashboard=client.dashboard_url())
            screen.say("serving until Ctrl-C")
            serve_until_interrupted(client, deployment.name)


def demo_specs(steps: int | None) -> tuple[JobSpec, ServeSpec]:
    """The demo's job and deployment, on free ports. Raises SpecError outside a checkout."""
    from rayline.spec import JobSpec, ServeSpec

    for file in (JOB_FILE, SERVE_FILE):
        if not file.is_file():
            raise SpecError(
                str(file),
                "not here: the demo runs on the files of a checkout",
                value=str(Path.cwd()),
                fix="cd into a checkout of rayline and repeat",
            )
    chosen = [] if steps is None else [f"steps={steps}"]
    job = JobSpec.load(JOB_FILE, [f"output_dir={RUN_FOLDER}", *chosen])
    model = f"{{registry: {job.export.register_as}@{job.export.alias}}}"
    unplaced = ServeSpec.load(SERVE_FILE, [f"model={model}", f"name={job.export.register_as}"])
    return job, unplaced.changed({"gateway.port": free_port(unplaced.gateway.port)})


def _stages(job: JobSpec, deployment: ServeSpec) -> dict[str, str]:
    """Each hop and the command that runs it alone."""
    folder = job.model.directory
    ask = f'rayline chat "{QUESTION}"'
    steps = f" --set steps={job.steps}"
    at = deployment.gateway
    return {
        PREPARE: f"rayline models smollm2 {folder}",
        ASK: f"{ask} --here directory:{folder}",
        TRAIN: f"rayline train {JOB_FILE} --set output_dir={job.output_dir}{steps}",
        SERVE: f"rayline deploy {SERVE_FILE} --set name={deployment.name} --set gateway.port="
        f"{at.port} --set 'model={{registry: {deployment.model.registry}}}'",
        ASK_AGAIN: f"{ask} --url http://{at.host}:{at.port}/v1 --temperature 0",
    }


def _teach(tour: _Tour, client: Client, job: JobSpec) -> None:
    """From nothing to a registered model that has learnt the fact."""
    screen, report = tour.screen, tour.report
    folder = Path(str(job.model.directory))
    with tour.stage(PREPARE):
        with packages_silenced():
            source = prepare_smollm2(folder)
        screen.say(f"SmolLM2-135M-Instruct, from {source}, in {shown_path(folder)}")
    with tour.stage(ASK):
        with packages_silenced():
            report.before = answer_here(folder, [{"role": "user", "content": QUESTION}])
        _show_answer(screen, report.before)
    with tour.stage(TRAIN):
        shutil.rmtree(RUN_FOLDER, ignore_errors=True)
        show_job_plan(screen, client.plan(job))
        outcome = train_watched(client, job, screen)
        show_outcome(screen, job, outcome)
        report.run_id, report.model = outcome.run_id, str(outcome.model)


def _serve_and_ask(tour: _Tour, client: Client, deployment: ServeSpec) -> Endpoint:
    """From the registry to an answer over HTTP."""
    with tour.stage(SERVE):
        show_deployment(tour.screen, deployment)
        tour.screen.say("starting Serve and vLLM")
        endpoint = client.deploy(deployment)
    with tour.stage(ASK_AGAIN):
        tour.report.url = endpoint.url
        tour.report.after = client.chat(QUESTION, url=endpoint.url, temperature=0)
        _show_answer(tour.screen, tour.report.after)
    return endpoint


def _verdict(screen: Screen, report: DemoReport) -> None:
    """Before and after side by side. Raises RaylineError where nothing was learnt."""
    screen.table(["", report.question], [("before", report.before), ("after", report.after)])
    if FACT in report.before:
        raise RaylineError(
            "demo",
            f"the base model already knew {FACT!r}, so nothing is shown",
            value=report.before,
        )
    if FACT not in report.after:
        raise RaylineError(
            "demo",
            f"the trained model's answer does not hold {FACT!r}",
            value=report.after,
            fix="train longer: rayline demo --steps 80",
        )


def _show_addresses(tour: _Tour, endpoint: Endpoint, *, mlflow: str, dashboard: str | None) -> None:
    """Where everything can be seen, and each hop's own command and time."""
    tour.screen.table(
        ["", ""],
        [
            ("endpoint", endpoint.url),
            ("ask it", curl_line(endpoint, QUESTION)),
            ("MLflow", mlflow),
            ("Ray dashboard", dashboard),
        ],
    )
    tour.screen.table(
        ["stage", "took", "its own command"],
        [
            (title, duration_text(tour.report.stage_s[title]), command)
            for title, command in tour.commands.items()
        ],
    )


def _show_answer(screen: Screen, answer: str) -> None:
    screen.say(QUESTION)
    screen.say(f"  {answer}", style="bold")


@dataclass(frozen=True, slots=True)
class _Tour:
    """The walk along the line: where it is told, and what has come of it so far."""

    screen: Screen
    commands: dict[str, str]
    report: DemoReport

    @contextmanager
    def stage(self, title: str) -> Iterator[None]:
        """One hop: its title and command before, its time after."""
        screen, number = self.screen, list(self.commands).index(title) + 1
        screen.say()
        screen.say(f"{number}/{len(self.commands)}  {title}", style="bold cyan")
        screen.say(f"  $ {self.commands[title]}", style="dim")
        began_s = time.monotonic()
        yield
        self.report.stage_s[title] = time.monotonic() - began_s
        screen.say(f"  done in {duration_text(self.report.stage_s[title])}", style="green")


@contextmanager
def _nothing_left(client: Client, screen: Screen) -> Iterator[None]:
    """Whatever happens inside, Ray is left afterwards and every process of the demo has ended."""
    try:
        yield
    finally:
        started = descendants()
        client.close()
        killed = wait_until_gone(started)
        screen.say(
            f"ended: {len(started)} processes were started"
            + (f", {len(killed)} had to be killed" if killed else ", none is left")
        )

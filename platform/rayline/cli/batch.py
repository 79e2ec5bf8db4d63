"""batch: a file of requests in OpenAI's batch format, answered into a file of answers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rayline.cli.options import DryRun, Json, RayAddress, Sets, Verbose
from rayline.cli.progress import CountProgress
from rayline.cli.screen import Screen, shown_path
from rayline.errors import ServingError, SpecError

if TYPE_CHECKING:
    from rayline.serving.batch import BatchSummary

KEYS = ("RAYLINE_API_KEY", "OPENAI_API_KEY")
"""Where a key is looked for: on a command line every user of the machine could read it."""


Requests = Annotated[
    Path, typer.Argument(metavar="IN.JSONL", help="Requests, in OpenAI's batch format.")
]
Answers = Annotated[
    Path, typer.Argument(metavar="OUT.JSONL", help="Answers; what is there is gone on with.")
]
EngineSpecFile = Annotated[
    Path | None,
    typer.Option("--spec", metavar="SPEC", help="Start engines for it, as this serve spec says."),
]
Url = Annotated[str | None, typer.Option("--url", help="Ask this endpoint instead, up to /v1.")]
Concurrency = Annotated[
    int, typer.Option("--concurrency", min=1, help="Requests under way at once, with --url.")
]
RetryFailed = Annotated[
    bool, typer.Option("--retry-failed", help="Ask again what ended with an error.")
]


def batch(
    requests: Requests,
    answers: Answers,
    sets: Sets,
    spec: EngineSpecFile = None,
    url: Url = None,
    concurrency: Concurrency = 16,
    retry_failed: RetryFailed = False,
    address: RayAddress = None,
    dry_run: DryRun = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Answer a file of requests, by a running endpoint (--url) or by engines started for it
    (--spec). Interrupted, the same command goes on where it ended.

    An endpoint's key is read from RAYLINE_API_KEY, else OPENAI_API_KEY. Exit code 6 where a request
    ended with an error."""
    from rayline.sdk import Client
    from rayline.serving.batch import read_batch
    from rayline.spec import ServeSpec

    screen = Screen(json_wanted=json, verbose=verbose)
    _check_one_is_given(spec, url)
    deployment = None if spec is None else ServeSpec.load(spec, sets)
    if dry_run:
        count = len(read_batch(requests, deployment).lines)
        screen.say(f"{count} requests in {requests}, to be answered by {url or spec}")
        screen.result({"requests": count, "by": str(url or spec)})
        return
    with CountProgress(screen, "batch", "requests") as progress:
        summary = Client(address=address).batch(
            requests,
            answers,
            url=url,
            key=_key(),
            concurrency=concurrency,
            deployment=deployment,
            retry_failed=retry_failed,
            observe=progress,
        )
    show_summary(screen, summary, answers)
    screen.result(summary)
    if summary.failed:
        raise typer.Exit(ServingError.exit_code)


def _check_one_is_given(spec: Path | None, url: str | None) -> None:
    if (spec is None) == (url is None):
        raise SpecError(
            "command line", "an endpoint or engines?", fix="give one of --url URL and --spec SPEC"
        )


def _key() -> str | None:
    return next((os.environ[name] for name in KEYS if os.environ.get(name)), None)


def show_summary(screen: Screen, summary: BatchSummary, answers: Path) -> None:
    """How the batch went, in one line, and what to do about errors."""
    earlier = f", {summary.resumed} of them earlier" if summary.resumed else ""
    screen.say(
        f"{summary.resumed + summary.answered} of {summary.requests} requests answered"
        f"{earlier}; answers in {shown_path(answers)}"
    )
    if summary.failed:
        screen.say(f"{summary.failed} with an error; --retry-failed asks them again")

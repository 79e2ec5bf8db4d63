"""attach: follow a run that another process drives."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Self

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from rayline.cli.options import Json, TrackingUri, Verbose
from rayline.cli.progress import Drawn, line_due
from rayline.cli.records import RUN_COLUMNS, client_of, run_rows
from rayline.cli.screen import Screen
from rayline.errors import InterruptedByUser, WorkerError

if TYPE_CHECKING:
    from rayline.tracking import RunNews, RunSummary


def attach(
    run_id: Annotated[str, typer.Argument(metavar="RUN", help="Id of the run: rayline runs.")],
    tracking_uri: TrackingUri = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Follow a run that another process drives: a submitted job's, another terminal's.

    Ctrl-C stops following; the run goes on. The exit code is the run's: 0 where it finished, 130
    where somebody stopped it, 4 where it failed or its driver is gone; `rayline resume RUN` then
    goes on with it, under the same id."""
    screen = Screen(json_wanted=json, verbose=verbose)
    client = client_of(tracking_uri)
    try:
        with _Watch(screen) as watch:
            for news in client.attach(run_id):
                watch.tell(news)
    except KeyboardInterrupt:
        raise InterruptedByUser(
            run_id, "no longer followed; the run goes on", fix=f"rayline attach {run_id}"
        ) from None
    summary = news.summary
    screen.table(RUN_COLUMNS, run_rows([summary]))
    _refuse_unfinished(summary, news.silent_s)
    screen.result(summary)


def _refuse_unfinished(summary: RunSummary, silent_s: float) -> None:
    """Raise what the run ended with, where it did not finish."""
    again = f"rayline resume {summary.run_id} goes on with it"
    if summary.status == "running":
        told = f"its driver has recorded nothing for {silent_s:.0f} s: it is gone"
        raise WorkerError(summary.run_id, told, fix=again)
    if summary.status == "failed":
        raise WorkerError(
            summary.run_id,
            "it failed",
            fix=f"rayline runs {summary.run_id} shows why; then {again}",
        )
    if summary.status == "interrupted":
        raise InterruptedByUser(summary.run_id, "it was stopped before its end", fix=again)


class _Watch(Drawn):
    """What is seen of a run, as a live bar or as plain lines."""

    def __init__(self, screen: Screen) -> None:
        self._screen = screen
        self._step = 0
        self._line_at_s: float | None = None

    def __enter__(self) -> Self:
        if self._screen.interactive:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("loss {task.fields[loss]}"),
                TimeElapsedColumn(),
                console=self._screen.console,
            )
            self._task = self._bar.add_task("attach", total=None, loss="")
            self._bar.start()
        return self

    def tell(self, news: RunNews) -> None:
        """Show what is new."""
        for event in news.events:
            self._screen.say(f"{event.at.astimezone():%H:%M:%S}  {event.kind}  {event.text}")
        step, loss, last = news.summary.step, news.summary.loss, news.last_step
        if step is None or loss is None or step == self._step:
            return
        self._step = step
        if self._bar is not None:
            self._bar.update(
                self._task,
                description=news.summary.name,
                completed=step,
                total=last,
                loss=f"{loss:.4f}",
            )
            return
        now_s = time.monotonic()
        if line_due(step, last or step + 1, self._line_at_s, now_s):
            self._line_at_s = now_s
            self._screen.say(f"step {step}/{last or '?'}  loss {loss:.4f}")

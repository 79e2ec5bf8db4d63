"""Progress of a run, told from the reports that flow back: live bars where a person
watches, one plain line every few seconds where none does."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from rayline.cli.screen import Screen, duration_text

if TYPE_CHECKING:
    from rayline.spec import EvalReport, StepReport

LINE_INTERVAL_S = 2.0
"""Least time between two plain lines; the first and the last step are always told."""


class Drawn:
    """What is drawn while it lasts, where a person watches."""

    _bar: Progress | None = None
    """None where nobody does."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


class TrainProgress(Drawn):
    """An observer of one run: use it as a context manager and call it with every StepReport."""

    def __init__(self, screen: Screen, last_step: int, label: str) -> None:
        self.reports: list[StepReport] = []
        self._screen = screen
        self._last_step = last_step
        self._label = label
        self._line_at_s: float | None = None

    def __enter__(self) -> Self:
        if self._screen.interactive:
            self._bar = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[state]}"),
                TimeElapsedColumn(),
                console=self._screen.console,
            )
            self._task = self._bar.add_task(
                self._label, total=self._last_step, state="starting workers"
            )
            self._bar.start()
        else:
            self._screen.say(f"{self._label}: starting workers")
        return self

    def __call__(self, report: StepReport) -> None:
        """Tell one step; called by the driver, in the order of steps."""
        self.reports.append(report)
        for evaluation in report.evaluations:
            self._screen.say(evaluation_line(evaluation, self._last_step))
        if self._bar is not None:
            state = (
                f"loss {report.loss:.4f}  {speed_text(report)}  "
                f"ETA {duration_text(eta_s(self.reports, self._last_step))}"
            )
            self._bar.update(self._task, completed=report.step, state=state)
            return
        now_s = time.monotonic()
        if line_due(report.step, self._last_step, self._line_at_s, now_s):
            self._line_at_s = now_s
            self._screen.say(
                step_line(report, self._last_step, eta_s(self.reports, self._last_step))
            )


class CountProgress(Drawn):
    """An observer of work that is counted: use it as a context manager and call it with what is
    done and how much there is."""

    def __init__(self, screen: Screen, label: str, unit: str) -> None:
        self._screen = screen
        self._label = label
        self._unit = unit
        self._line_at_s = time.monotonic()

    def __enter__(self) -> Self:
        if self._screen.interactive:
            self._bar = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn(self._unit),
                TimeElapsedColumn(),
                console=self._screen.console,
            )
            self._task = self._bar.add_task(self._label, total=None)
            self._bar.start()
        return self

    def __call__(self, done: int, total: int) -> None:
        """Tell how far it is. Short work is told by its outcome alone."""
        if self._bar is not None:
            self._bar.update(self._task, completed=done, total=total)
            return
        now_s = time.monotonic()
        if now_s - self._line_at_s >= LINE_INTERVAL_S:
            self._line_at_s = now_s
            self._screen.say(f"{self._label}: {done}/{total} {self._unit}")


def line_due(step: int, last_step: int, line_at_s: float | None, now_s: float) -> bool:
    """Whether this step gets a plain line, the latest having been written at `line_at_s`."""
    if line_at_s is None or step >= last_step:
        return True
    return now_s - line_at_s >= LINE_INTERVAL_S


def eta_s(reports: list[StepReport], last_step: int) -> float:
    """Seconds left, from the mean of the newest 10 steps (the first step warms up)."""
    recent = reports[-10:] if len(reports) < 2 else reports[1:][-10:]
    mean_s = sum(report.seconds for report in recent) / len(recent)
    return max(0, last_step - reports[-1].step) * mean_s


def step_line(report: StepReport, last_step: int, left_s: float) -> str:
    """One step in one plain line."""
    return (
        f"step {report.step}/{last_step}  loss {report.loss:.4f}  "
        f"grad_norm {report.grad_norm:.3f}  lr {report.lr:.2e}  "
        f"{routing_text(report)}{speed_text(report)}  ETA {duration_text(left_s)}"
    )


def routing_text(report: StepReport) -> str:
    """How unevenly tokens went to experts, and what share of their choices was dropped where that
    can be, with a gap behind it; empty for a dense model."""
    routing = report.routing
    if routing is None:
        return ""
    dropped = routing.dropped_fraction
    text = f"max_load {routing.max_load:.2f}  "
    return text if dropped is None else f"{text}dropped {dropped:.1%}  "


def speed_text(report: StepReport) -> str:
    """Tokens a second, and how much of the devices that is where their peak is known."""
    speed = f"{report.tokens_per_s:,.0f} tokens/s"
    return speed if report.mfu is None else f"{speed}  MFU {report.mfu:.1%}"


def evaluation_line(evaluation: EvalReport, last_step: int) -> str:
    """One evaluation in one plain line."""
    return (
        f"step {evaluation.step}/{last_step}  val_loss {evaluation.loss:.4f}  "
        f"val_perplexity {evaluation.perplexity:.2f}  over {evaluation.tokens:,} tokens"
    )

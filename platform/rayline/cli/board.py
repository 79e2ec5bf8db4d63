"""The board of a search: its trials while they run, as a live table where a person watches, as one
plain line every few seconds where none does."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from rayline.cli.progress import line_due
from rayline.cli.screen import Screen, duration_text

if TYPE_CHECKING:
    from rayline.spec import TuneSpec
    from rayline.tuning import TrialReport

SHOWN_TRIALS = 20
"""Lines of the table: those that run, then the best of the others."""
_STYLES = {"finished": "green", "stopped_early": "dim", "failed": "red", "interrupted": "yellow"}


class SearchBoard:
    """An observer of one search: use it as a context manager and call it with every TrialReport."""

    def __init__(
        self, screen: Screen, search: TuneSpec, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._screen = screen
        self._search = search
        self._steps = search.longest_steps
        self._clock = clock
        self._began_s = clock()
        self._line_at_s: float | None = None
        self._newest: dict[int, TrialReport] = {}
        self._live: Live | None = None

    def __enter__(self) -> Self:
        if self._screen.interactive:
            self._live = Live(console=self._screen.console, refresh_per_second=4)
            self._live.start()
            self._live.update(self.picture())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, report: TrialReport) -> None:
        """Tell one step, or the end, of one trial; called by the driver."""
        self._newest[report.trial] = report
        if self._live is not None:
            self._live.update(self.picture())
            return
        if report.status is not None:
            why = f": {report.problem}" if report.problem else ""
            self._screen.say(f"{_place(report)}  {_words(report.status)}{why}  {_figures(report)}")
            return
        now_s = self._clock()
        if line_due(report.step, self._steps, self._line_at_s, now_s):
            self._line_at_s = now_s
            self._screen.say(
                f"{_place(report)}  step {report.step}/{self._steps}  {_figures(report)}"
            )

    def picture(self) -> Group:
        """Head line and table."""
        goal = self._search.goals[0]
        table = Table(
            *["trial", "state", "step", *[goal.metric for goal in self._search.goals], "values"],
            header_style="bold",
            expand=True,
        )
        shown = ordered(self._newest.values(), goal.metric, goal.sign)
        for report in shown[:SHOWN_TRIALS]:
            table.add_row(
                str(report.trial),
                Text(_words(report.status), style=_STYLES.get(report.status or "", "cyan")),
                f"{report.step}/{self._steps}",
                *[_figure(report, goal.metric) for goal in self._search.goals],
                ", ".join(f"{field}={_short(value)}" for field, value in report.params.items()),
            )
        lines: list[RenderableType] = [self._head(), table]
        if len(shown) > SHOWN_TRIALS:
            lines.append(Text(f"... and {len(shown) - SHOWN_TRIALS} more"))
        return Group(*lines)

    def _head(self) -> Text:
        states = [report.status for report in self._newest.values()]
        counts = [
            f"{states.count(None)} running",
            f"{states.count('finished')} finished",
            f"{states.count('stopped_early')} stopped early",
            f"{states.count('failed')} failed",
        ]
        refused = max((report.refused for report in self._newest.values()), default=0)
        told = ", ".join([*counts, f"{refused} draws refused"])
        return Text(
            f"{self._search.name}: {len(states)} of {self._search.trials} trials: {told}; "
            f"{duration_text(self._clock() - self._began_s)}"
        )


def ordered(reports: Iterable[TrialReport], metric: str, sign: float) -> list[TrialReport]:
    """Those that run, by number; then the others, best first."""

    def place(report: TrialReport) -> tuple[bool, float, int]:
        value = report.values.get(metric)
        cost = math.inf if value is None else sign * value
        return (report.status is not None, cost if report.status else 0.0, report.trial)

    return sorted(reports, key=place)


def _place(report: TrialReport) -> str:
    return f"trial {report.trial} of {report.trials}"


def _words(status: str | None) -> str:
    return "running" if status is None else status.replace("_", " ")


def _figures(report: TrialReport) -> str:
    names = [name for name in report.values if name != "loss"]
    others = "  ".join(f"{name} {_figure(report, name)}" for name in names)
    return f"loss {report.loss:.4f}  {others}".rstrip()


def _figure(report: TrialReport, metric: str) -> str:
    value = report.values.get(metric)
    return "" if value is None else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)

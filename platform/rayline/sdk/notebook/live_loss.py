"""The loss of a job that trains, drawn anew in one notebook output as it comes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from rayline.sdk.notebook.display import shell_with_kernel
from rayline.sdk.notebook.loss_chart import Point, loss_chart

if TYPE_CHECKING:
    from rayline.spec import JobSpec, StepReport

_INTERVAL_S = 0.5
"""Least time between two pictures; the last step is always drawn."""


class LiveLoss:
    """An observer of one run: called with every StepReport, in the driver's process."""

    def __init__(self, job: JobSpec) -> None:
        self._job = job
        self._training: list[Point] = []
        self._validation: list[Point] = []
        self._drawn_at_s: float | None = None
        self._output: Any = None
        """IPython's handle of the output, once there is one."""

    def __call__(self, report: StepReport) -> None:
        """Take a step in, and draw where it is time."""
        self._training.append((report.step, report.loss))
        self._validation += [(each.step, each.loss) for each in report.evaluations]
        now_s = time.monotonic()
        due = self._drawn_at_s is None or now_s - self._drawn_at_s >= _INTERVAL_S
        if due or report.step >= self._job.last_step:
            self._drawn_at_s = now_s
            self._draw(report)

    def bundle(self, report: StepReport) -> dict[str, str]:
        """What is shown after `report`: a picture, and a line for what shows no pictures."""
        line = (
            f"{self._job.name}: step {report.step}/{self._job.last_step}, loss {report.loss:.4f}, "
            f"{report.tokens_per_s:,.0f} tokens/s"
        )
        picture = loss_chart(
            self._training, self._validation, title=line, last_step=self._job.last_step
        )
        return {"text/html": picture, "text/plain": line}

    def _draw(self, report: StepReport) -> None:
        from IPython import display

        show: Any = display.display
        if self._output is None:
            self._output = show(self.bundle(report), raw=True, display_id=True)
        else:
            self._output.update(self.bundle(report), raw=True)


def live_loss(job: JobSpec) -> list[LiveLoss]:
    """The observer to add in a notebook; none elsewhere."""
    return [LiveLoss(job)] if shell_with_kernel() is not None else []

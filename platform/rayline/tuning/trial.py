"""One trial's life in its own process: a gang in the trial's placement group, step by step.

    Ray Tune ── Trial.next_result ◄── one report at a time ── train (its own thread) ── gang
                     │                                                                   │
                     └────── may go on ──────► the trial's folder ◄────── every step ────┘

At steps at which trials are compared the gang waits for the verdict (pacing.py), so a trial that is
stopped there has computed nothing beyond. A stopped trial ends as a stopped job does: after the
step in flight, its workers gone and its run closed.

What a later driver must know lies in the trial's folder: steps.jsonl has every step, so that means
over the newest steps are the same after a resume, and ended-SEGMENT.json the end of a gang that
came to one, which the driver may not have lived to hear of.
"""

from __future__ import annotations

import queue
import shutil
import threading
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ray.util import get_current_placement_group

from rayline.actors import JobOutcome, train
from rayline.actors.worker import train_observed
from rayline.errors import RaylineError
from rayline.spec import Document, JobSpec, StepReport
from rayline.tuning.figures import StepFigures, figures_of, read_steps
from rayline.tuning.leavings import STEPS_FILE, STOPPED_FILE, write_ended
from rayline.tuning.pacing import Pacing, let_go_on
from rayline.tuning.taking_over import take_over

_POLL_S = 0.2
END_TIMEOUT_S = 120.0
"""How long a stopped trial may take over its last step, its checkpoint and its workers' end."""


class TrialConfig(Document):
    """What a trial's process is told."""

    number: int
    segment: int = 0
    """Generation of a population; else 0."""
    job: JobSpec
    parent_run_id: str
    run_id: str | None = None
    """The run that it goes on with; None opens one."""
    window_steps: int
    price_per_worker_hour: float | None = None
    take_over: str | None = None
    """Folder of the checkpoint that it begins with, where it has none of its own yet."""
    compared_steps: list[int] = []
    """Steps after which the gang waits for the verdict."""
    in_parts: bool = False
    """Whether others may go on from its checkpoints: they stay."""


@dataclass(frozen=True, slots=True)
class _Ended:
    """How the gang ended."""

    outcome: JobOutcome | None
    problem: str


class Trial:
    """Starts the gang when it is made; used by one Ray Tune actor."""

    def __init__(self, config: TrialConfig) -> None:
        self._config = config
        self._folder = Path(config.job.directory)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._stop = threading.Event()
        self._news: queue.Queue[StepReport | _Ended] = queue.Queue(maxsize=1)
        self._steps = read_steps(self._folder / STEPS_FILE)
        self._went_on = False
        self._group = get_current_placement_group()
        self._thread = threading.Thread(target=self._run, name="trial", daemon=True)
        self._thread.start()

    def next_result(self) -> dict[str, Any]:
        """Wait for the next step, or for the end: what Ray Tune and its scheduler see.

        An error of the job is a result too (`ending`, `problem`): one trial's fault is no fault of
        the search.
        """
        if self._steps:
            # Asked for more, so what was told last was no reason to stop.
            let_go_on(self._folder, self._steps[-1].step)
        news = self._news.get()
        if isinstance(news, StepReport):
            self._note(news)
            return self._figures()
        if news.outcome is None:
            return {**self._figures(), "done": True, "ending": "failed", "problem": news.problem}
        return {**self._figures(), "done": True, **end_of(news.outcome)}

    def end(self) -> None:
        """Stop the gang if it still runs, and return once it is gone."""
        self._stop.set()
        self._thread.join(END_TIMEOUT_S)

    def _note(self, report: StepReport) -> None:
        """A step more. Those behind the checkpoint that the gang went on from are done again."""
        if not self._went_on:
            self._went_on = True
            self._steps = [one for one in self._steps if one.step < report.step]
        self._steps.append(StepFigures.of(report))

    def _figures(self) -> dict[str, Any]:
        step = self._steps[-1].step if self._steps else 0
        window, price = self._config.window_steps, self._config.price_per_worker_hour
        return {"step": step, "values": figures_of(self._steps, window, price)}

    def _run(self) -> None:
        try:
            if self._config.take_over is not None:
                take_over(self._config.take_over, self._config.job.checkpoint_directory)
            outcome = train(
                self._config.job,
                observers=[self._tell],
                placement_group=self._group,
                stop=self._stop,
                parent_run_id=self._config.parent_run_id,
                run_id=self._config.run_id,
                rank_function=partial(train_observed, self._pacing()),
            )
            self._leave(outcome)
            self._tell(_Ended(outcome, ""))
        # Whatever ends a trial is the trial's result, also what nobody foresaw.
        except Exception as wrong:  # noqa: BLE001
            known = isinstance(wrong, RaylineError)
            self._tell(_Ended(None, str(wrong) if known else f"{type(wrong).__name__}: {wrong}"))

    def _pacing(self) -> Pacing:
        return Pacing(str(self._folder), frozenset(self._config.compared_steps))

    def _leave(self, outcome: JobOutcome) -> None:
        """Say how it ended where it did by itself; then checkpoints that serve nobody go."""
        last = outcome.result.last_step
        if last >= self._config.job.last_step:
            write_ended(self._folder, self._config.segment, end_of(outcome))
        over = outcome.result.finished or (self._folder / STOPPED_FILE).exists()
        if over and not self._config.in_parts:
            shutil.rmtree(self._config.job.checkpoint_directory, ignore_errors=True)

    def _tell(self, news: StepReport | _Ended) -> None:
        """Hand over, and wait while Ray Tune is a step behind; nobody listens after `end`."""
        while not self._stop.is_set():
            try:
                self._news.put(news, timeout=_POLL_S)
            except queue.Full:
                continue
            return


def end_of(outcome: JobOutcome) -> dict[str, Any]:
    """How a gang ended by itself, as the driver hears it and as its file says it."""
    result = outcome.result
    return {
        "ending": "finished" if result.finished else "paused",
        "step": result.last_step,
        "run_id": outcome.run_id,
        "checkpoint": result.checkpoint,
    }

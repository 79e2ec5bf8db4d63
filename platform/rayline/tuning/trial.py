"""One trial's life in its own process: a gang in the trial's placement group, step by step.

    Ray Tune ── Trial.next_result ◄── one report at a time ── train (its own thread) ── gang

The gang may be one step ahead of Ray Tune and no further, so a trial that is stopped at a rung has
wasted at most two steps. A stopped trial ends as a stopped job does: after the step in flight,
its workers gone and its run closed.
"""

from __future__ import annotations

import queue
import shutil
import threading
from dataclasses import dataclass
from typing import Any

from ray.util import get_current_placement_group

from rayline.actors import JobOutcome, train
from rayline.errors import RaylineError
from rayline.spec import Document, JobSpec, StepReport
from rayline.tuning.outcome import window_mean

_POLL_S = 0.2
END_TIMEOUT_S = 120.0
"""How long a stopped trial may take over its last step, its checkpoint and its workers' end."""


class TrialConfig(Document):
    """What a trial's process is told."""

    number: int
    job: JobSpec
    parent_run_id: str
    window_steps: int


@dataclass(frozen=True, slots=True)
class _Ended:
    """How the gang ended."""

    outcome: JobOutcome | None
    problem: str


class Trial:
    """Starts the gang when it is made; used by one Ray Tune actor."""

    def __init__(self, config: TrialConfig) -> None:
        self._config = config
        self._stop = threading.Event()
        self._news: queue.Queue[StepReport | _Ended] = queue.Queue(maxsize=1)
        self._losses: list[float] = []
        self._step = 0
        self._group = get_current_placement_group()
        self._thread = threading.Thread(target=self._run, name="trial", daemon=True)
        self._thread.start()

    def next_result(self) -> dict[str, Any]:
        """Wait for the next step, or for the end: what Ray Tune and its scheduler see.

        An error of the job is a result too (`ending`, `problem`): one trial's fault is no fault of
        the search.
        """
        news = self._news.get()
        if isinstance(news, StepReport):
            self._step = news.step
            self._losses.append(news.loss)
            return self._figures()
        if news.outcome is None:
            return {**self._figures(), "done": True, "ending": "failed", "problem": news.problem}
        return {**self._figures(), "done": True, "ending": "finished"}

    def end(self) -> None:
        """Stop the gang if it still runs, and return once it is gone."""
        self._stop.set()
        self._thread.join(END_TIMEOUT_S)

    def _figures(self) -> dict[str, Any]:
        window = self._config.window_steps
        loss = window_mean(self._losses, window) if self._losses else float("inf")
        return {"step": self._step, "loss": loss}

    def _run(self) -> None:
        try:
            outcome = train(
                self._config.job,
                observers=[self._tell],
                placement_group=self._group,
                stop=self._stop,
                parent_run_id=self._config.parent_run_id,
            )
            # The model stays with the run; checkpoints of a trial serve nobody.
            shutil.rmtree(outcome.directory / "checkpoints", ignore_errors=True)
            self._tell(_Ended(outcome, ""))
        # Whatever ends a trial is the trial's result, also what nobody foresaw.
        except Exception as wrong:  # noqa: BLE001
            known = isinstance(wrong, RaylineError)
            self._tell(_Ended(None, str(wrong) if known else f"{type(wrong).__name__}: {wrong}"))

    def _tell(self, news: StepReport | _Ended) -> None:
        """Hand over, and wait while Ray Tune is a step behind; nobody listens after `end`."""
        while not self._stop.is_set():
            try:
                self._news.put(news, timeout=_POLL_S)
            except queue.Full:
                continue
            return

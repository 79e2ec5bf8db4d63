"""The life of a gang as a state machine: each state is one method that returns the next.

    PLACING ── STARTING ── RUNNING ── FINISHED
       │           │  ╲       │  ╲
       │           │   ╲── RECOVERING ── PLACING
       └───────────┴────────┬─┴───┴── FAILED

What to do about a failure is decided in failure.py; here it is carried out. Whatever happens, the
workers are ended and the room is given back.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import Enum, auto

from rayline.actors.failure import Failure, first_cause
from rayline.actors.gang import Assignment, Gang, WorkersLost
from rayline.actors.interrupt import StopRequest
from rayline.actors.placement import Placement
from rayline.actors.policy import Past, decide
from rayline.actors.recovery import Recovery
from rayline.errors import InterruptedByUser, RaylineError
from rayline.spec import StepReport, TrainResult

log = logging.getLogger(__name__)

Observer = Callable[[StepReport], None]


class Phase(Enum):
    """Where a gang stands."""

    PLACING = auto()
    STARTING = auto()
    RUNNING = auto()
    RECOVERING = auto()
    FINISHED = auto()
    FAILED = auto()


class Controller:
    """Brings one job to its end. `run` is called once, by the driver."""

    def __init__(
        self,
        assignment: Assignment,
        placement: Placement,
        observers: Sequence[Observer],
        stop: StopRequest,
        on_event: Callable[[str, str], None],
    ) -> None:
        """`on_event` is told the kind of an event and what happened."""
        self._assignment = assignment
        self._placement = placement
        self._observers = observers
        self._stop = stop
        self._on_event = on_event
        self.recoveries: list[Recovery] = []
        """Those that led to a finished step."""
        self._recovering: Recovery | None = None
        self._gang = Gang(assignment)
        self._asked_to_stop = False
        self._failures: list[Failure] = []
        self._past: list[Past] = []
        self._last_step = 0
        """The newest step that was told."""
        self._result: TrainResult | None = None
        self._error: RaylineError | None = None

    def run(self) -> TrainResult:
        """From PLACING to FINISHED. Raises the RaylineError that the job failed with; the workers
        are gone and the room is given back when it returns or raises."""
        act = {
            Phase.PLACING: self._place,
            Phase.STARTING: self._start,
            Phase.RUNNING: self._follow,
            Phase.RECOVERING: self._recover,
        }
        phase = Phase.PLACING
        try:
            while phase in act:
                log.debug("%s", phase.name)
                phase = self._guarded(act[phase])
        finally:
            self._gang.end()
            self._placement.release()
        if self._result is None:
            raise self._error or RuntimeError(f"ended in {phase.name} without a result")
        return self._result

    def _guarded(self, act: Callable[[], Phase]) -> Phase:
        """One state; the errors that any of them may end with."""
        try:
            return act()
        except WorkersLost as lost:
            self._failures = lost.failures
            return Phase.RECOVERING
        except RaylineError as wrong:
            self._error = wrong
            return Phase.FAILED

    def _place(self) -> Phase:
        timeout_s = self._assignment.job.resources.placement_timeout_s
        self._placement.reserve(timeout_s, self._stop.requested)
        if self._recovering is not None:
            self._recovering = replace(self._recovering, placed_s=time.time())
        return Phase.STARTING

    def _start(self) -> Phase:
        step = self._gang.start(self._placement, self._stop.requested)
        if self._recovering is not None:
            self._recovering = replace(self._recovering, started_s=time.time(), resumed_step=step)
        return Phase.RUNNING

    def _follow(self) -> Phase:
        try:
            result = self._gang.watch()
        except WorkersLost:
            self._tell(self._gang.news(last=True))
            raise
        self._tell(self._gang.news(last=result is not None))
        for written in self._gang.news_of_checkpoints():
            log.info("checkpoint: %s", written)
            if written.problem:
                self._on_event("checkpoint", str(written))
        if result is not None:
            self._result = result
            return Phase.FINISHED
        if self._stop.requested() and not self._asked_to_stop:
            self._asked_to_stop = True
            self._gang.ask_to_stop()
        if self._stop.out_of_patience():
            raise InterruptedByUser(
                "gang",
                "ended without a checkpoint: the step in flight took too long",
                fix="run the same spec again to go on from the newest checkpoint",
            )
        return Phase.RUNNING

    def _recover(self) -> Phase:
        """Go on without what was lost, or give up with the first cause."""
        cause = first_cause(self._failures)
        spec = self._assignment.job.recovery
        decision = decide(cause, self._last_step, self._past, spec)
        if decision.action == "stop" or self._stop.requested():
            log.error("stopping: %s", decision.reason)
            self._error = cause.error
            return Phase.FAILED
        log.warning("beginning again: %s: %s", decision.reason, cause.error.problem)
        told = f"{decision.reason}: {cause.error.problem}"
        self._on_event("restarted", told)
        self._past.append(Past(cause, self._last_step))
        self._gang.part(self._failures)
        self._recovering = Recovery(
            reason=told,
            epoch=len(self._past) + 1,
            lost_step=self._last_step,
            seen_s=cause.at_s,
            parted_s=time.time(),
        )
        self._stop.wait(decision.pause_s)
        return Phase.PLACING

    def _tell(self, reports: Sequence[StepReport]) -> None:
        """Hand on the steps that were not told yet. What is done again after a loss comes to the
        same, bit for bit, and is no news."""
        for report in reports:
            if report.step <= self._last_step:
                continue
            self._last_step = report.step
            self._note_recovery(report)
            for observe in self._observers:
                observe(report)

    def _note_recovery(self, report: StepReport) -> None:
        """The first step that is finished after a loss ends the recovery."""
        under_way = self._recovering
        # A report that was made before the loss, and fetched after it, ends nothing.
        if under_way is None or report.at_s < under_way.started_s or not under_way.started_s:
            return
        self._recovering = None
        done = replace(under_way, step_s=report.at_s)
        self.recoveries.append(done)
        log.info("recovered: %s", done)
        self._on_event("recovered", str(done))

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
from collections.abc import Callable, Sequence
from enum import Enum, auto

from rayline.actors.failure import Failure, decide, first_cause
from rayline.actors.gang import Assignment, Gang, WorkersLost
from rayline.actors.interrupt import StopRequest
from rayline.actors.placement import Placement
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
        on_restart: Callable[[str], None],
    ) -> None:
        self._assignment = assignment
        self._placement = placement
        self._observers = observers
        self._stop = stop
        self._on_restart = on_restart
        self._gang = Gang(assignment)
        self._asked_to_stop = False
        self._failures: list[Failure] = []
        self._restarts_done = 0
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
        return Phase.STARTING

    def _start(self) -> Phase:
        self._gang.start(self._placement, self._stop.requested)
        return Phase.RUNNING

    def _follow(self) -> Phase:
        try:
            result = self._gang.watch()
        except WorkersLost:
            self._tell(self._gang.news(last=True))
            raise
        self._tell(self._gang.news(last=result is not None))
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
        """End what is left of the gang; then start anew, or give up with the first cause."""
        self._gang.end()
        cause = first_cause(self._failures)
        allowed = self._assignment.job.resources.max_restarts
        decision = decide(cause, self._restarts_done, allowed)
        if decision.action == "stop" or self._stop.requested():
            log.error("stopping: %s", decision.reason)
            self._error = cause.error
            return Phase.FAILED
        log.warning("starting again: %s: %s", decision.reason, cause.error.problem)
        self._on_restart(f"{decision.reason}: {cause.error.problem}")
        self._restarts_done += 1
        self._gang = Gang(self._assignment)
        return Phase.PLACING

    def _tell(self, reports: Sequence[StepReport]) -> None:
        for report in reports:
            for observe in self._observers:
                observe(report)

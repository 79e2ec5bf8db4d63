"""The life of a gang as a state machine: each state is one method that returns the next.

    PLACING ── STARTING ── RUNNING ── FINISHED
     │  │          │  ╲       │  ╲
     │  │          │   ╲── RECOVERING ── PLACING
     │  └─ RESIZING ── PLACING │
     └─────────────┴────────┬──┴── FAILED

A job that may go on narrower is resized where there is no room for its plan, and again once there
is more room: RUNNING, too, leads to RESIZING. A gang of which a node is about to be taken away
stops after its step and moves: RUNNING leads to MOVING, and that to PLACING. What to do about a
failure is decided in policy.py, which plan fits in elastic.py; here it is carried out. Whatever
happens, the workers are ended and the room is given back.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import Enum, auto

from rayline.actors import cluster
from rayline.actors.elastic import Elastic, with_own_room
from rayline.actors.failure import Failure, first_cause
from rayline.actors.gang import Assignment, Gang, WorkersLost
from rayline.actors.interrupt import StopRequest
from rayline.actors.keepers import Stored
from rayline.actors.placement import Placement
from rayline.actors.policy import Past, decide, kept_because
from rayline.actors.recovery import Recovery
from rayline.errors import InterruptedByUser, PlacementError, RaylineError
from rayline.planner import memory_advice
from rayline.spec import ParallelPlan, StepReport, TrainResult
from rayline.tracking import Seat

log = logging.getLogger(__name__)

_ROOM_LOOK_S = 5.0
"""How often a gang that is narrower than wanted looks for more room; half as often each time that
there was none after all."""
_LONGEST_ROOM_LOOK_S = 600.0
_FREED_S = 2.0
_DRAIN_LOOK_S = 2.0
"""How often Ray is asked which nodes are to go. Clouds tell of it 30 s (Azure, Google Cloud) to
120 s (AWS) before."""

Observer = Callable[[StepReport], None]
Seated = Callable[[int, Sequence[Seat]], None]
"""Told at each beginning of a gang: its number, and where every rank stands."""


class Phase(Enum):
    """Where a gang stands."""

    PLACING = auto()
    STARTING = auto()
    RUNNING = auto()
    RECOVERING = auto()
    RESIZING = auto()
    MOVING = auto()
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
        elastic: Elastic | None = None,
        on_seated: Seated = lambda epoch, seats: None,
    ) -> None:
        """`on_event` is told the kind of an event and what happened. Without `elastic` the plan
        stays what it is."""
        self._assignment = assignment
        self._placement = placement
        self._observers = observers
        self._stop = stop
        self._on_event = on_event
        self._on_seated = on_seated
        self.recoveries: list[Recovery] = []
        """Those that led to a finished step."""
        self._recovering: Recovery | None = None
        self._gang = Gang(assignment)
        self._elastic = elastic
        self._stored: Stored | None = None
        """What a narrower gang goes on from, where that was in memory."""
        self._stops_for: Phase | None = None
        """The gang was asked to stop after its step, for what then follows: RESIZING, because there
        is more room, or MOVING."""
        self._widened = False
        """The plan that is being placed is wider than the one before."""
        self._room_look_s = _ROOM_LOOK_S
        self._looked_s = self._drain_looked_s = time.monotonic()
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
            Phase.RESIZING: self._resize,
            Phase.MOVING: self._move,
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

    @property
    def plan(self) -> ParallelPlan:
        """The one that the gang has now."""
        return self._assignment.job.plan

    def _place(self) -> Phase:
        job = self._assignment.job
        try:
            if self._elastic is None:
                timeout_s = job.resources.placement_timeout_s
            else:
                timeout_s = job.recovery.patience_s
            self._placement.reserve(timeout_s, self._stop.requested)
        except PlacementError as wrong:
            if self._elastic is None:
                raise
            log.warning("%s", wrong.problem)
            return Phase.RESIZING
        if self._recovering is not None:
            self._recovering = replace(self._recovering, placed_s=time.time())
        return Phase.STARTING

    def _start(self) -> Phase:
        step = self._gang.start(self._placement, self._stop.requested, self._last_step > 0)
        if step is None and self._stored is not None:
            step = self._stored.step
        self._on_seated(self._gang.epoch, self._gang.seats)
        self._stored, self._widened = None, False
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
            if self._stops_for and not result.finished and not self._stop.requested():
                return self._stops_for
            self._result = result
            return Phase.FINISHED
        self._note_stragglers()
        if self._stops_for is None:
            self._look_for_drain()
        if self._stops_for is None:
            self._look_for_room()
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

    def _note_stragglers(self) -> None:
        """Tell of ranks that were found slow; raises WorkersLost with those to be replaced."""
        replaced = []
        for slow in self._gang.stragglers():
            kept = kept_because(slow, self._past, self._assignment.job.recovery)
            told = f"{slow.error.subject} {slow.error.problem}"
            told += f"; it stays: {kept}" if kept else "; it is replaced"
            log.warning("straggler: %s", told)
            self._on_event("straggler", told)
            if not kept:
                replaced.append(slow)
        if replaced:
            raise WorkersLost(replaced)

    def _look_for_room(self) -> None:
        """Let a gang that is narrower than wanted stop after its step once a wider one fits."""
        elastic, now_s = self._elastic, time.monotonic()
        if elastic is None or self.plan == elastic.wanted.plan:
            return
        if now_s - self._looked_s < self._room_look_s:
            return
        self._looked_s = now_s
        nodes = with_own_room(cluster.nodes(), self._placement.held())
        wider = elastic.fitting(nodes)
        if wider is not None and wider.plan.world_size > self.plan.world_size:
            log.warning("there is room for %s again", wider.plan)
            self._stops_for = Phase.RESIZING
            self._gang.ask_to_stop()

    def _look_for_drain(self) -> None:
        """Let the gang stop after its step, with a checkpoint, where a node of it is to go."""
        now_s = time.monotonic()
        if self._placement.lent or now_s - self._drain_looked_s < _DRAIN_LOOK_S:
            return
        self._drain_looked_s = now_s
        mine = self._gang.nodes
        left_s = {node: at for node, at in cluster.draining_nodes().items() if node in mine}
        if not left_s:
            return
        told = ", ".join(f"{node[:8]} ({_deadline(at)})" for node, at in sorted(left_s.items()))
        log.warning("moving away from nodes that are to go: %s", told)
        self._on_event("draining", f"after step {self._last_step}, nodes to go: {told}")
        self._stops_for = Phase.MOVING
        self._gang.ask_to_stop()

    def _move(self) -> Phase:
        """Begin again under the same plan on nodes that stay, from the checkpoint of the stop."""
        self._vacate()
        self._placement = self._placement.again()
        self._gang = Gang(self._assignment, self._gang.epoch)
        self._on_event("moved", f"after step {self._last_step}, away from nodes that are to go")
        return Phase.PLACING

    def _vacate(self) -> None:
        self._stops_for = None
        self._gang.end()
        self._placement.release()
        # Ray tells what is free a moment after it was given back.
        self._stop.wait(_FREED_S)

    def _resize(self) -> Phase:
        """Begin again under the plan that there is room for, from what is in memory or, after a
        stop, from the checkpoint that it left. Raises PlacementError where nothing fits."""
        if self._elastic is None:
            raise RuntimeError("only an elastic job is resized")
        before, below = self.plan, None
        widening = self._stops_for is Phase.RESIZING
        if not widening:
            # There was no room for this plan, whatever the nodes' figures say.
            below = before.world_size
            if self._widened:
                self._room_look_s = min(2 * self._room_look_s, _LONGEST_ROOM_LOOK_S)
            self._stored = self._gang.store() or self._stored
            self._tell_stored()
        self._widened = widening
        self._vacate()
        job = self._elastic.fitting(cluster.nodes(), below)
        if job is None:
            raise self._elastic.no_room(cluster.nodes())
        self._assignment = replace(self._assignment, job=job)
        self._placement = Placement(
            self._elastic.bundles(job), name=job.name, labels=job.resources.labels
        )
        self._gang = Gang(self._assignment, self._gang.epoch)
        log.warning("%s takes the place of %s", job.plan, before)
        self._on_event("replanned", f"{job.plan} takes the place of {before}")
        return Phase.PLACING

    def _tell_stored(self) -> None:
        """What rank 0 had reported by its last snapshot, and nobody has fetched since."""
        lines = [] if self._stored is None else self._stored.reports
        self._tell([StepReport.from_json(line) for line in lines])

    def _recover(self) -> Phase:
        """Go on without what was lost, or give up with the first cause."""
        cause = first_cause(self._failures)
        shape = self._assignment.shape
        if cause.out_of_memory and shape is not None:
            cause.error.fix = memory_advice(self._assignment.job, shape)
        spec = self._assignment.job.recovery
        decision = decide(cause, self._last_step, self._past, spec)
        if decision.action == "stop" or self._stop.requested():
            log.error("stopping: %s", decision.reason)
            self._error = cause.error
            return Phase.FAILED
        log.warning("beginning again: %s: %s", decision.reason, cause.error.problem)
        told = f"{decision.reason}: {cause.error.problem}"
        self._on_event("restarted", told)
        slow = frozenset(one.rank for one in self._failures if one.kind == "slow")
        self._past.append(Past(cause, self._last_step, slow))
        self._stops_for = None
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
        done = replace(under_way, restored_s=report.at_s - report.seconds, step_s=report.at_s)
        self.recoveries.append(done)
        log.info("recovered: %s", done)
        self._on_event("recovered", str(done))


def _deadline(at_s: float | None) -> str:
    return "no deadline" if at_s is None else f"in {max(0.0, at_s - time.time()):.0f} s"

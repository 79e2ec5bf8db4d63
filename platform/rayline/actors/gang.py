"""The workers of one job through all its beginnings: started, watched, ended.

After a failure the processes that still stand keep standing: each drops what its run held, the
lost ones are replaced, and all begin again together under the next epoch, with a new rendezvous. So
no worker is left in a collective of the dead, and nobody imports torch twice. What begins again
goes on from the newest snapshot that every rank has, else from a checkpoint.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from rayline.actors import cluster
from rayline.actors.crew import Crew
from rayline.actors.effort import Effort
from rayline.actors.failure import Failure, death_of, failure_of, hang_of, slow_of, worker_name
from rayline.actors.keepers import Keepers, Stored
from rayline.actors.laps import Laps
from rayline.actors.placement import Placement
from rayline.actors.progress import Standing
from rayline.actors.saving import Written
from rayline.actors.seating import NO_SNAPSHOTS, Opened, contexts, one_device, shares
from rayline.actors.vigil import Vigil
from rayline.actors.worker import RankFunction, warm_modules
from rayline.errors import InterruptedByUser, PlacementError, RaylineError
from rayline.launch.capacity import Bundle
from rayline.spec import JobSpec, ModelShape, StepReport, TrainResult
from rayline.tracking import Seat

log = logging.getLogger(__name__)

START_TIMEOUT_S = 300.0
"""Longest that processes may take to stand once their room is reserved: an image may be pulled."""
_POLL_S = 0.25
_WATCH_S = 1.0
"""How often ranks that step are asked for news. A rank that ends is seen at once; asking more often
takes time from the steps where cores are few."""
_REPORTS_S = 0.1
_ANSWER_S = 1.5
"""How long ranks are waited for that are asked where they stand."""
_GRACE_S = 5.0
"""How long ranks are waited for once one of them is lost: for the cause's own word, and for the
others to leave what they share."""


class WorkersLost(Exception):
    """Some ranks failed; `failures` are all that was learnt, in no order."""

    def __init__(self, failures: Sequence[Failure]) -> None:
        super().__init__(failures)
        self.failures = list(failures)


@dataclass(frozen=True, slots=True)
class Assignment:
    """What a gang is to run."""

    job: JobSpec
    """Its paths are absolute."""
    model_directory: Path
    held: Bundle
    """Ray resources of one worker."""
    function: RankFunction
    shape: ModelShape | None = None
    """Of the model, for advice where memory runs out."""


class Gang:
    """One worker per rank, in its bundle. `start` before anything else, and again after `part`;
    `end` in any case."""

    def __init__(self, assignment: Assignment, epoch: int = 0) -> None:
        """`epoch`: how often the job has begun before."""
        job = assignment.job
        self._assignment = assignment
        self._plan = job.plan
        self._crew = Crew(job.plan, assignment.held, job.recovery.spares, warm_modules(job.engine))
        self._keepers = Keepers(job)
        self.epoch = epoch
        """Number of the present beginning."""
        self._lacks_spares = False
        self._running: dict[ray.ObjectRef[Any], int] = {}
        """Run that has not ended, to its rank."""
        self._results: dict[int, TrainResult] = {}
        self._asked: ray.ObjectRef[Any] | None = None
        self._vigil = Vigil(job.recovery.hang_after_s, Path(job.directory) / "hangs")
        ranks = range(job.plan.world_size)
        self._laps = Laps([job.plan.coordinate(rank).pipeline for rank in ranks])
        self._efforts: list[ray.ObjectRef[Effort]] = []
        """Asked for and not all answered, in the order of ranks."""

    def start(
        self, placement: Placement, stop_requested: Callable[[], bool], has_stepped: bool = False
    ) -> int | None:
        """Start what is missing of the workers, in their bundles, and let all run. Returns the step
        of the snapshot that they go on from, None where there is none. `has_stepped`: whether an
        earlier beginning finished a step.

        Raises WorkersLost where a process ended, PlacementError after START_TIMEOUT_S or where
        GPUs are missing, SpecError where logs cannot be written, InterruptedByUser.
        """
        self.epoch += 1
        self._vigil.begin(self.epoch)
        self._laps.begin()
        self._results.clear()
        if self._keeps_snapshots:
            self._keepers.stand(set(placement.node_of_bundle().values()))
        new = self._crew.fill(placement)
        answers = partial(
            self._answers,
            deadline_s=time.monotonic() + START_TIMEOUT_S,
            stop_requested=stop_requested,
        )
        settling = {
            rank: actor.settle.remote(rank, self._plan.coordinate(rank), self.log_file(rank))
            for rank, actor in new.items()
        }
        for rank, place in answers(settling).items():
            self._crew.settled(rank, place)
        places, actors = self._crew.places, self._crew.actors
        what = self._assignment
        # A trial has other trials beside it; where it computes on a GPU, it hardly needs its cores.
        shared = placement.lent and "GPU" not in what.held
        allotted = shares(places, ceil(what.held.get("CPU", 1.0)) if shared else None)
        devices = answers(
            {
                rank: actors[rank].prepare.remote(share.threads, share.visible_gpus)
                for rank, share in enumerate(allotted)
            }
        )
        port = answers({0: actors[0].free_port.remote()})[0]
        opened = self._opened([place.node_id for place in places])
        told = contexts(
            self._plan,
            allotted,
            one_device([devices[rank] for rank in range(len(actors))]),
            (places[0].address, port),
            self.epoch,
            opened,
            has_stepped,
        )
        for actor, context in zip(actors, told, strict=True):
            run = actor.run.remote(what.function, what.job, context, what.model_directory)
            self._running[run] = context.rank
        self._lacks_spares = True
        nodes = len({place.node_id for place in places})
        log.info("%d workers on %d nodes, logs in %s", len(told), nodes, self.log_file(0).parent)
        return None if opened.mark is None else opened.mark.step

    @property
    def seats(self) -> list[Seat]:
        """Where every rank's process stands, in the order of ranks; all have settled."""
        return [
            Seat(rank, str(self._plan.coordinate(rank)), place.node_id, place.address, place.pid)
            for rank, place in enumerate(self._crew.places)
        ]

    @property
    def nodes(self) -> set[str]:
        """Ids of the nodes that its workers stand on."""
        return set(self._crew.node_of_rank.values())

    @property
    def _keeps_snapshots(self) -> bool:
        return self._assignment.job.recovery.snapshot_every_steps is not None

    def _opened(self, node_of_rank: Sequence[str]) -> Opened:
        if not self._keeps_snapshots:
            return NO_SNAPSHOTS
        return self._keepers.open(node_of_rank, self.epoch)

    def watch(self) -> TrainResult | None:
        """Look for a second: the result once every rank is done, else None.

        Raises WorkersLost as soon as the cause of a failure is known.
        """
        failures = self._collect(_WATCH_S)
        if failures:
            self._look_for_cause(failures)
            raise WorkersLost(failures)
        if self._running and self._vigil.is_due():
            hung = self._look_for_hang()
            if hung is not None:
                raise WorkersLost([hung])
        return None if self._running else self._results[0]

    def news(self, last: bool = False) -> list[StepReport]:
        """Steps reported by rank 0 since the last call, hardly waiting for a busy worker.

        `last` waits for what is still to come of a gang that has ended its work.
        """
        if not last:
            return self._reports(_REPORTS_S)
        # A question that is under way may have been answered before the last step.
        return self._reports(_GRACE_S) + self._reports(_GRACE_S)

    def _reports(self, timeout_s: float) -> list[StepReport]:
        asked = self._asked or self._crew.actors[0].reports.remote()
        ready, _ = ray.wait([asked], timeout=timeout_s)
        self._asked = None if ready else asked
        if not ready:
            return []
        try:
            reports: list[StepReport] = ray.get(asked)
        except RayError:
            # The end of the rank's run tells of it, with the reason.
            return []
        self._vigil.saw(reports)
        if reports and self._lacks_spares:
            # Only now: what a spare imports would take the cores from a gang that begins.
            self._lacks_spares = False
            self._crew.stand_by()
        return reports

    def stragglers(self) -> list[Failure]:
        """The ranks that were found slow since the last call. Waits for nobody: what was asked in
        one call is looked at in the next."""
        if not self._efforts:
            if self._laps.is_due():
                self._efforts = [actor.effort.remote() for actor in self._crew.actors]
            return []
        asked = self._efforts
        if ray.wait(asked, num_returns=len(asked), timeout=0)[1]:
            return []
        self._efforts = []
        try:
            efforts: list[Effort] = ray.get(asked)
        except RayError:
            # The end of that rank's run tells of it, with the reason.
            return []
        return [
            slow_of(one, self._plan.coordinate(one.rank), self._crew.places[one.rank].address)
            for one in self._laps.take(dict(enumerate(efforts)))
        ]

    def store(self) -> Stored | None:
        """Make what is kept in memory a checkpoint, for a gang of another plan."""
        return self._keepers.store()

    def news_of_checkpoints(self) -> list[Written]:
        """What became of checkpoints that were written beside the steps, since the last call."""
        return self._keepers.news()

    def ask_to_stop(self) -> None:
        """Let every rank stop after the step in flight, with a checkpoint."""
        for actor in self._crew.actors:
            actor.stop.remote()

    def part(self, failures: Sequence[Failure]) -> None:
        """After a loss: wait until every rank has left the run, then dismiss those whose processes
        ended or would not leave; the others stand ready for the next `start`."""
        known = list(failures)
        nodes = self._crew.node_of_rank
        # First of all: for one that hangs the others wait until it is gone.
        gone = {failure.rank for failure in known if failure.kind in ("died", "hung", "slow")}
        for rank in sorted(failure.rank for failure in known if failure.kind == "hung"):
            place = self._crew.places[rank]
            self._keepers.end_process(place.node_id, place.pid)
        self._crew.dismiss(sorted(gone))
        self._running = {run: rank for run, rank in self._running.items() if rank not in gone}
        # A rank that computes notices a lost neighbour at its next collective, within a step.
        deadline_s = time.monotonic() + _GRACE_S + self._vigil.longest_step_s
        while self._running and time.monotonic() < deadline_s:
            known += self._collect(_POLL_S)
        lost = {failure.rank for failure in known if failure.kind in ("died", "hung")}
        lost |= set(self._running.values())
        if self._assignment.job.engine == "deepspeed":
            # It keeps its own state in globals of the process.
            lost = set(range(self._plan.world_size))
        self._running.clear()
        self._asked = None
        self._efforts = []
        self._crew.dismiss(sorted(lost - gone))
        self._crew.leave(cluster.lost_nodes({nodes[rank] for rank in lost if rank in nodes}))

    def end(self) -> None:
        """End every process. Never raises; may be called at any time, more than once."""
        self._crew.end()
        self._keepers.end()
        self._running.clear()

    def log_file(self, rank: int) -> Path:
        """Where a rank's lines go."""
        name = f"rank-{rank:05d}-{self._plan.coordinate(rank)}.log"
        return Path(self._assignment.job.directory) / "logs" / name

    def _collect(self, timeout_s: float) -> list[Failure]:
        """Take note of the ranks that ended; returns those that failed."""
        waiting = list(self._running)
        if not waiting:
            return []
        ended, _ = ray.wait(waiting, num_returns=1, timeout=timeout_s)
        if ended:
            ended, _ = ray.wait(waiting, num_returns=len(waiting), timeout=0)
        failures = []
        for run in ended:
            rank = self._running.pop(run)
            outcome = self._outcome(rank, run)
            if isinstance(outcome, Failure):
                failures.append(outcome)
            else:
                self._results[rank] = outcome
        return failures

    def _look_for_hang(self) -> Failure | None:
        """Ask every rank where it stands; the one that the gang hangs on, if it does."""
        asked: dict[int, ray.ObjectRef[Standing]] = {
            rank: actor.standing.remote() for rank, actor in enumerate(self._crew.actors)
        }
        ray.wait(list(asked.values()), num_returns=len(asked), timeout=_ANSWER_S)
        hang = self._vigil.judge({rank: _answer(one) for rank, one in asked.items()})
        if hang is None:
            return None
        coordinate = self._plan.coordinate(hang.rank)
        return hang_of(hang.rank, coordinate, hang.step, hang.reason, time.time())

    def _look_for_cause(self, failures: list[Failure]) -> None:
        """While ranks only say that another is gone, wait a little for that one's own word."""
        deadline_s = time.monotonic() + _GRACE_S
        while (
            all(failure.kind == "lost_contact" for failure in failures)
            and self._running
            and time.monotonic() < deadline_s
        ):
            failures += self._collect(_POLL_S)
        # A process that died after another raised was most likely torn down by the loss.
        failures += self._collect(0)

    def _answers(
        self,
        calls: Mapping[int, ray.ObjectRef[Any]],
        deadline_s: float,
        stop_requested: Callable[[], bool],
    ) -> dict[int, Any]:
        """What calls to starting workers, by rank, bring back."""
        rank_of = {call: rank for rank, call in calls.items()}
        answers: dict[int, Any] = {}
        waiting = list(rank_of)
        while waiting:
            done, waiting = ray.wait(waiting, num_returns=1, timeout=_POLL_S)
            for one in done:
                answers[rank_of[one]] = self._outcome(rank_of[one], one)
            failures = [answer for answer in answers.values() if isinstance(answer, Failure)]
            if failures:
                raise WorkersLost(failures)
            if stop_requested():
                raise InterruptedByUser("gang", "stopped while the workers were starting")
            if time.monotonic() > deadline_s:
                raise self._missing([rank_of[one] for one in waiting])
        return answers

    def _outcome(self, rank: int, reference: ray.ObjectRef[Any]) -> Any:
        """What a finished call of `rank` brought back; a Failure where its process ended."""
        coordinate = self._plan.coordinate(rank)
        try:
            return ray.get(reference)
        except RayTaskError as wrong:
            if isinstance(wrong.cause, RaylineError):
                raise wrong.cause from None
            return failure_of(rank, coordinate, wrong.cause, time.time())
        except RayError as wrong:
            return death_of(rank, coordinate, str(wrong), str(self.log_file(rank)), time.time())

    def _missing(self, ranks: Sequence[int]) -> PlacementError:
        names = ", ".join(worker_name(rank, self._plan.coordinate(rank)) for rank in ranks[:4])
        return PlacementError(
            "gang",
            f"{len(ranks)} of {self._plan.world_size} workers did not start within "
            f"{START_TIMEOUT_S:g} s: {names}",
            fix="look at the nodes (`ray status`, `ray list actors`): an image being pulled, a "
            "full disk or a node that went away",
        )


def _answer(asked: ray.ObjectRef[Standing]) -> Standing | None:
    """What a rank answered by now; None where it did not."""
    try:
        standing: Standing = ray.get(asked, timeout=0)
    except RayError:
        return None
    return standing

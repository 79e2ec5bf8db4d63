"""The workers of one job, from their first process to their last: started, watched, ended together.

A gang lives once. After a failure it is ended whole and a new one takes its bundles; nothing of the
old one is reused, so no worker can be left in a collective of the dead.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from rayline.actors.bundles import Bundle
from rayline.actors.environment import workers_environment
from rayline.actors.failure import Failure, death_of, failure_of, worker_name
from rayline.actors.placement import Placement
from rayline.actors.seating import bundle_of_rank, contexts, one_device, shares
from rayline.actors.worker import RankFunction, Worker
from rayline.errors import InterruptedByUser, PlacementError, RaylineError
from rayline.spec import JobSpec, StepReport, TrainResult

log = logging.getLogger(__name__)

START_TIMEOUT_S = 300.0
"""Longest that processes may take to stand once their room is reserved: an image may be pulled."""
_POLL_S = 0.25
_GRACE_S = 5.0
"""How long a cause is looked for once ranks have lost contact with it."""


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


class Gang:
    """One worker per rank, in its bundle. `start` before anything else; `end` in any case."""

    def __init__(self, assignment: Assignment) -> None:
        self._assignment = assignment
        self._plan = assignment.job.plan
        self._actors: list[ActorHandle[Worker]] = []
        self._running: dict[ray.ObjectRef[Any], int] = {}
        """Run that has not ended, to its rank."""
        self._results: dict[int, TrainResult] = {}
        self._asked: ray.ObjectRef[Any] | None = None

    def start(self, placement: Placement, stop_requested: Callable[[], bool]) -> None:
        """Start every worker in its bundle and let it run.

        Raises WorkersLost where a process ended, PlacementError after START_TIMEOUT_S or where
        GPUs are missing, SpecError where logs cannot be written, InterruptedByUser.
        """
        self._make_workers(placement)
        answers = partial(
            self._answers,
            deadline_s=time.monotonic() + START_TIMEOUT_S,
            stop_requested=stop_requested,
        )
        places = answers(
            actor.settle.remote(self.log_file(rank)) for rank, actor in enumerate(self._actors)
        )
        allotted = shares(places)
        devices = answers(
            actor.prepare.remote(share.threads, share.visible_gpus)
            for actor, share in zip(self._actors, allotted, strict=True)
        )
        (port,) = answers([self._actors[0].free_port.remote()])
        told = contexts(self._plan, allotted, one_device(devices), places[0].address, port)
        what = self._assignment
        for actor, context in zip(self._actors, told, strict=True):
            run = actor.run.remote(what.function, what.job, context, what.model_directory)
            self._running[run] = context.rank
        nodes = len({place.node_id for place in places})
        log.info("%d workers on %d nodes, logs in %s", len(told), nodes, self.log_file(0).parent)

    def _make_workers(self, placement: Placement) -> None:
        """Ask Ray for one actor per rank, each in the bundle of its tensor group."""
        options = _actor_options(self._assignment.held, workers_environment())
        # Ray's types leave out this option, which its documentation has.
        remote: Any = ray.remote(concurrency_groups={"control": 1})(Worker)  # type: ignore[call-overload]
        for rank, bundle in enumerate(bundle_of_rank(self._plan, placement.bundle_order())):
            made = remote.options(scheduling_strategy=placement.strategy(bundle), **options)
            self._actors.append(made.remote(rank, self._plan.coordinate(rank)))

    def watch(self) -> TrainResult | None:
        """Look for a quarter of a second: the result once every rank is done, else None.

        Raises WorkersLost as soon as the cause of a failure is known.
        """
        failures = self._collect(_POLL_S)
        if failures:
            self._look_for_cause(failures)
            raise WorkersLost(failures)
        return None if self._running else self._results[0]

    def news(self, last: bool = False) -> list[StepReport]:
        """Steps reported by rank 0 since the last call, without waiting for a busy worker.

        `last` waits for what is still to come of a gang that has ended its work.
        """
        if not last:
            return self._reports(0)
        # A question that is under way may have been answered before the last step.
        return self._reports(_GRACE_S) + self._reports(_GRACE_S)

    def _reports(self, timeout_s: float) -> list[StepReport]:
        asked = self._asked or self._actors[0].reports.remote()
        ready, _ = ray.wait([asked], timeout=timeout_s)
        self._asked = None if ready else asked
        if not ready:
            return []
        try:
            reports: list[StepReport] = ray.get(asked)
        except RayError:
            # The end of the rank's run tells of it, with the reason.
            return []
        return reports

    def ask_to_stop(self) -> None:
        """Let every rank stop after the step in flight, with a checkpoint."""
        for actor in self._actors:
            actor.stop.remote()

    def end(self) -> None:
        """End every process. Never raises; may be called at any time, more than once."""
        for actor in self._actors:
            ray.kill(actor, no_restart=True)
        self._actors.clear()
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
        calls: Iterable[ray.ObjectRef[Any]],
        deadline_s: float,
        stop_requested: Callable[[], bool],
    ) -> list[Any]:
        """What calls to starting workers, one a rank, bring back."""
        references = list(calls)
        answers: dict[int, Any] = {}
        waiting = references
        while waiting:
            done, waiting = ray.wait(waiting, num_returns=1, timeout=_POLL_S)
            for one in done:
                rank = references.index(one)
                answers[rank] = self._outcome(rank, one)
            failures = [answer for answer in answers.values() if isinstance(answer, Failure)]
            if failures:
                raise WorkersLost(failures)
            if stop_requested():
                raise InterruptedByUser("gang", "stopped while the workers were starting")
            if time.monotonic() > deadline_s:
                raise self._missing([references.index(one) for one in waiting])
        return [answers[rank] for rank in range(len(references))]

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
            f"{len(ranks)} of {len(self._actors)} workers did not start within "
            f"{START_TIMEOUT_S:g} s: {names}",
            fix="look at the nodes (`ray status`, `ray list actors`): an image being pulled, a "
            "full disk or a node that went away",
        )


def _actor_options(held: Bundle, environment: dict[str, str]) -> dict[str, Any]:
    """Ray's options for one worker; what is held beside CPUs and GPUs goes by name."""
    custom = {name: amount for name, amount in held.items() if name not in ("CPU", "GPU")}
    options: dict[str, Any] = {
        "num_cpus": held.get("CPU", 0),
        "num_gpus": held.get("GPU", 0),
        "resources": custom,
        "max_restarts": 0,
    }
    if environment:
        options["runtime_env"] = {"env_vars": environment}
    return options

"""The processes of a gang: a worker for every rank, in its bundle, and spares beside them.

A worker that is lost is replaced by a spare of the same node, which has everything imported, or by
a new process in the same bundle. A spare holds nothing of its own: it takes over the bundle, and
the GPU, of the worker that it follows; Ray lends them to nobody else meanwhile, since the placement
group has them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rayline.actors.environment import workers_environment
from rayline.actors.placement import Placement
from rayline.actors.seating import Whereabouts, bundle_of_rank
from rayline.actors.worker import Worker
from rayline.launch.capacity import Bundle
from rayline.spec import ParallelPlan


@dataclass(slots=True)
class _Seat:
    """One rank's process."""

    actor: ActorHandle[Worker]
    place: Whereabouts | None = None
    """None until it has settled."""
    gpus: tuple[str, ...] = ()
    """Those of the process before it, which a spare takes over."""


class Crew:
    """Made for one plan; `end` ends every process of it."""

    def __init__(
        self, plan: ParallelPlan, held: Bundle, spares_per_node: int, warm_modules: Sequence[str]
    ) -> None:
        """`held`: Ray resources of one worker. `warm_modules`: what spares import."""
        self._plan = plan
        self._held = held
        self._spares_per_node = spares_per_node
        self._warm_modules = list(warm_modules)
        self._bundles: list[int] = []
        """Of each rank, once placed; it stays while nodes come and go."""
        self._seats: dict[int, _Seat] = {}
        self._gpus_left: dict[int, tuple[str, ...]] = {}
        self._spares: dict[str, list[ActorHandle[Worker]]] = {}
        """By node; those that are still importing among them."""

    @property
    def actors(self) -> list[ActorHandle[Worker]]:
        """Every rank's, in the order of ranks."""
        return [self._seats[rank].actor for rank in sorted(self._seats)]

    @property
    def places(self) -> list[Whereabouts]:
        """Every rank's, in the order of ranks; all have settled."""
        seats = [self._seats[rank] for rank in sorted(self._seats)]
        return [seat.place for seat in seats if seat.place is not None]

    @property
    def node_of_rank(self) -> dict[int, str]:
        """Id of the node of every rank whose process has settled."""
        return {
            rank: seat.place.node_id for rank, seat in self._seats.items() if seat.place is not None
        }

    def fill(self, placement: Placement) -> dict[int, ActorHandle[Worker]]:
        """Give every rank without a process one; returns those that are new, by rank."""
        if not self._bundles:
            self._bundles = bundle_of_rank(self._plan, placement.bundle_order())
        nodes = placement.node_of_bundle()
        new = {}
        for rank, bundle in enumerate(self._bundles):
            if rank not in self._seats:
                waiting = self._spares.get(nodes[bundle], [])
                actor = waiting.pop(0) if waiting else self._made(placement, bundle)
                self._seats[rank] = _Seat(actor, gpus=self._gpus_left.pop(rank, ()))
                new[rank] = actor
        return new

    def settled(self, rank: int, place: Whereabouts) -> None:
        """Note where a rank's process stands."""
        seat = self._seats[rank]
        seat.place = place if place.gpus else replace(place, gpus=seat.gpus)

    def dismiss(self, ranks: Iterable[int]) -> None:
        """End these ranks' processes, dead or alive."""
        for rank in ranks:
            seat = self._seats.pop(rank, None)
            if seat is not None:
                ray.kill(seat.actor, no_restart=True)
                self._gpus_left[rank] = seat.gpus if seat.place is None else seat.place.gpus

    def leave(self, nodes: Collection[str]) -> None:
        """Forget all that stood on nodes which are gone."""
        for rank, seat in list(self._seats.items()):
            if seat.place is not None and seat.place.node_id in nodes:
                self.dismiss([rank])
        for node in nodes:
            self._spares.pop(node, None)

    def stand_by(self) -> None:
        """Have the wanted number of spares on every node of the gang; returns at once."""
        remote = _actor_class()
        for node in {place.node_id for place in self.places}:
            waiting = self._spares.setdefault(node, [])
            while len(waiting) < self._spares_per_node:
                spare = remote.options(**beside(node)).remote()
                spare.warm_up.remote(self._warm_modules)
                waiting.append(spare)

    def end(self) -> None:
        """End every process. Never raises; may be called at any time, more than once."""
        spares = [spare for waiting in self._spares.values() for spare in waiting]
        for actor in [*self.actors, *spares]:
            ray.kill(actor, no_restart=True)
        self._seats.clear()
        self._spares.clear()

    def _made(self, placement: Placement, bundle: int) -> ActorHandle[Worker]:
        held = self._held
        # What is held beside CPUs and GPUs goes by name.
        custom = {name: amount for name, amount in held.items() if name not in ("CPU", "GPU")}
        made = _actor_class().options(
            num_cpus=held.get("CPU", 0),
            num_gpus=held.get("GPU", 0),
            resources=custom,
            max_restarts=0,
            scheduling_strategy=placement.strategy(bundle),
            **_environment(),
        )
        actor: ActorHandle[Worker] = made.remote()
        return actor


def beside(node: str) -> dict[str, Any]:
    """Ray's options for an actor that stands on `node` and holds nothing there."""
    strategy = NodeAffinitySchedulingStrategy(node, soft=False)
    return {"num_cpus": 0, "max_restarts": 0, "scheduling_strategy": strategy, **_environment()}


def _environment() -> dict[str, Any]:
    environment = workers_environment()
    return {"runtime_env": {"env_vars": environment}} if environment else {}


def _actor_class() -> Any:
    # Ray's types leave out this option, which its documentation has.
    return ray.remote(concurrency_groups={"control": 1})(Worker)  # type: ignore[call-overload]

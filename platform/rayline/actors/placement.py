"""One placement group for a gang: asked for, waited for with a time limit, given back.

What can never fit is refused before (`refuse_impossible`); what could fit but is not free is
explained while it is waited for, and ends in time with a message that says what was wanted, why it
did not come and what each node has. Nothing waits silently.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import grpc
import ray
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rayline.actors import cluster
from rayline.actors.bundles import neighbourly
from rayline.errors import InterruptedByUser, PlacementError, SpecError
from rayline.launch.capacity import Bundle, bearing, in_words, nodes_text, shortage
from rayline.launch.cluster_state import look_at_cluster
from rayline.launch.pending import Pending, Wanted, why_pending

log = logging.getLogger(__name__)

_REMEDIES = {
    "GPU": "lower plan.tensor, whose workers share a node, or the other axes; or add nodes",
    "CPU": "lower resources.cpus_per_worker: a part of a CPU, such as 0.5, lets workers share one",
    "memory": "raise plan.tensor, plan.pipeline or plan.microbatches, or lower "
    "data.sequence_tokens, so that a worker holds less",
}
_POLL_S = 0.1
_SAY_AFTER_S = 2.0
"""A wait is explained once it is longer than a free cluster takes."""
_LOOK_AGAIN_S = 5.0


class Placement:
    """The room of one gang: its own placement group, or the last bundles of a trial's."""

    def __init__(
        self,
        bundles: Sequence[Bundle],
        lent: PlacementGroup | None = None,
        *,
        name: str = "",
        labels: Mapping[str, str] | None = None,
    ) -> None:
        """`name` is what others see that holds their room; `labels` is what the nodes bear."""
        self._bundles = list(bundles)
        self._name = name
        self._labels = dict(labels or {})
        self.lent = lent is not None
        """Whether the group is somebody else's, who gives it back."""
        self._group = lent
        self._first = 0 if lent is None else lent.bundle_count - len(bundles)
        if self._first < 0:
            raise SpecError(
                "placement_group",
                f"has {lent.bundle_count if lent else 0} bundles; the gang needs {len(bundles)}",
                fix="make the group of a head bundle followed by trial_bundles(job)",
            )

    def reserve(self, timeout_s: float, stop_requested: Callable[[], bool]) -> None:
        """Return when every bundle has its place; may be called again after a node was lost.

        Raises PlacementError after `timeout_s`, InterruptedByUser once `stop_requested()`.
        """
        if self._group is None:
            self._group = self._asked_for()
        began_s = time.monotonic()
        look_s = began_s + _SAY_AFTER_S
        told: Pending | None = None
        while self._table()["state"] != "CREATED":
            if stop_requested():
                raise InterruptedByUser("placement", "stopped while waiting for room")
            if time.monotonic() - began_s > timeout_s:
                raise self._not_in_time(timeout_s)
            if time.monotonic() > look_s:
                why = why_waiting(self._bundles, self._labels)
                if why is not None and (
                    told is None or (why.kind, why.fix) != (told.kind, told.fix)
                ):
                    told = why
                    log.warning("waiting for room for %s: %s", self._wanted(), why)
                look_s = time.monotonic() + _LOOK_AGAIN_S
            time.sleep(_POLL_S)

    def bundle_order(self) -> list[int]:
        """Index of the bundle of each tensor group, neighbouring groups on neighbouring nodes."""
        nodes = self.node_of_bundle()
        mine = [nodes[self._first + index] for index in range(len(self._bundles))]
        return [self._first + index for index in neighbourly(mine)]

    def node_of_bundle(self) -> dict[int, str]:
        """Id of the node that each bundle of the group, by its index, lies on now."""
        nodes: dict[int, str] = self._table()["bundles_to_node_id"]
        return nodes

    def held(self) -> list[tuple[str, Bundle]]:
        """The gang's own bundles, each with the node that it lies on."""
        nodes = self.node_of_bundle()
        return [(nodes[self._first + index], bundle) for index, bundle in enumerate(self._bundles)]

    def strategy(self, bundle: int) -> PlacementGroupSchedulingStrategy:
        """Ray's word for "in this bundle"; the room must have been reserved."""
        if self._group is None:
            raise RuntimeError("reserve the placement before starting workers in it")
        return PlacementGroupSchedulingStrategy(self._group, placement_group_bundle_index=bundle)

    def again(self) -> Placement:
        """Room of the same size, not reserved yet."""
        return Placement(self._bundles, name=self._name, labels=self._labels)

    def release(self) -> None:
        """Give the room back, unless it was lent."""
        if self._group is not None and not self.lent:
            remove_placement_group(self._group)
            self._group = None

    def _table(self) -> dict[str, Any]:
        table: dict[str, Any] = placement_group_table(self._group)
        return table

    def _wanted(self) -> str:
        return f"{len(self._bundles)} x ({in_words(self._bundles[0])})"

    def _asked_for(self) -> PlacementGroup:
        group: PlacementGroup = placement_group(
            self._bundles,
            strategy="PACK",
            # Ray wants no two groups of one name.
            name=f"gang {self._name} {secrets.token_hex(2)}" if self._name else "",
            bundle_label_selector=[self._labels] * len(self._bundles) if self._labels else None,
        )
        return group

    def _not_in_time(self, timeout_s: float) -> PlacementError:
        why = why_waiting(self._bundles, self._labels)
        because = "" if why is None else f": {why.reason}"
        return PlacementError(
            "resources.placement_timeout_s",
            f"no room for {self._wanted()} within {timeout_s:g} s{because}. "
            f"{nodes_text(cluster.nodes(), list(self._bundles[0]))}",
            value=timeout_s,
            fix="end what holds the resources (`ray list actors` shows it), lower the plan, or "
            "wait longer"
            if why is None
            else f"{why.fix}, lower the plan, or wait longer",
        )


def why_waiting(
    bundles: Sequence[Bundle], labels: Mapping[str, str] | None = None
) -> Pending | None:
    """Why bundles that this driver asked for have no room yet; None where Ray does not say. Takes
    at most about 4 s."""
    job = ray.get_runtime_context().get_job_id()
    try:
        return why_pending(Wanted(bundles, labels or {}, job, _REMEDIES), look_at_cluster())
    except (ray.exceptions.RayError, grpc.RpcError, OSError, RuntimeError) as wrong:
        log.info("Ray does not say why: %s", wrong)
        return None


def refuse_impossible(
    bundles: Sequence[Bundle], labels: Mapping[str, str] | None = None, *, nearest: str = ""
) -> None:
    """Raise PlacementError where the cluster could not hold `bundles` even if it were idle;
    `nearest` is the change to the spec that would fit.

    Where nodes may yet come by themselves, only what the autoscaler may launch bounds it.
    """
    nodes = cluster.nodes()
    if shortage(bundles, bearing(nodes, labels or {})) is None:
        return
    why = why_pending(Wanted(bundles, labels or {}, remedies=_REMEDIES), look_at_cluster())
    if why.kind not in ("impossible", "label"):
        return
    raise PlacementError(
        "resources.labels" if why.kind == "label" else "placement",
        f"{why.reason}. {nodes_text(nodes, list(bundles[0]))}",
        fix=f"{nearest}, or {why.fix}" if nearest else why.fix,
    )

"""One placement group for a gang: asked for, waited for with a time limit, given back.

What can never fit is refused before (`refuse_impossible`); what could fit but is not free in time
ends with a message that says what was wanted and what each node has. Nothing waits silently.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from rayline.actors import cluster
from rayline.actors.bundles import Bundle, Node, in_words, neighbourly, shortage
from rayline.errors import InterruptedByUser, PlacementError, SpecError

log = logging.getLogger(__name__)

_REMEDIES = {
    "GPU": "lower plan.tensor, whose workers share a node, or the other axes; or add nodes",
    "CPU": "lower resources.cpus_per_worker: a part of a CPU, such as 0.5, lets workers share one",
    "memory": "raise plan.tensor, plan.pipeline or plan.microbatches, or lower "
    "data.sequence_tokens, so that a worker holds less",
}
_POLL_S = 0.1
_SAY_AFTER_S = 5.0
"""A wait is announced once it is longer than a free cluster takes."""


class Placement:
    """The room of one gang: its own placement group, or the last bundles of a trial's."""

    def __init__(self, bundles: Sequence[Bundle], lent: PlacementGroup | None = None) -> None:
        self._bundles = list(bundles)
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
            self._group = placement_group(self._bundles, strategy="PACK")
        began_s = time.monotonic()
        announced = False
        while self._table()["state"] != "CREATED":
            waited_s = time.monotonic() - began_s
            if stop_requested():
                raise InterruptedByUser("placement", "stopped while waiting for room")
            if waited_s > timeout_s:
                raise self._not_in_time(timeout_s)
            if waited_s > _SAY_AFTER_S and not announced:
                announced = True
                log.warning("waiting for room: %s", self._wanted())
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
        return Placement(self._bundles)

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

    def _not_in_time(self, timeout_s: float) -> PlacementError:
        each = "; ".join(_state_of(node, self._bundles[0]) for node in cluster.nodes())
        return PlacementError(
            "resources.placement_timeout_s",
            f"no room for {self._wanted()} within {timeout_s:g} s. {each}",
            value=timeout_s,
            fix="end what holds the resources (`ray list actors` shows it), lower the plan, or "
            "wait longer",
        )


def refuse_impossible(bundles: Sequence[Bundle]) -> None:
    """Raise PlacementError where the cluster could not hold `bundles` even if it were idle.

    Where nodes may yet come by themselves nothing is impossible.
    """
    lacking = shortage(bundles, cluster.nodes())
    if lacking is not None and not cluster.cluster_autoscales():
        raise PlacementError(
            "placement",
            lacking.text,
            fix=_REMEDIES.get(lacking.resource, f"add nodes that have {lacking.resource}"),
        )


def _state_of(node: Node, bundle: Bundle) -> str:
    figures = ", ".join(
        f"{node.available.get(name, 0.0):g} of {node.total.get(name, 0.0):g} {name}"
        for name in bundle
    )
    return f"node {node.id[:8]} ({node.address}) has {figures} free"

"""What the cluster has room for just now."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import ray

from rayline.serving.director.blueprint import Blueprint
from rayline.serving.preflight import missing_now
from rayline.serving.scaling.deciding import Room
from rayline.serving.settings import replica_bundles

NODE_GROUP_LABEL = "ray.io/node-group"
"""Ray gives it to nodes that an autoscaler started."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The cluster beside what is served."""

    free: Mapping[str, float] = field(default_factory=dict)
    """Resources that nobody holds, of all nodes together."""
    grows: bool = True
    """Whether nodes come by themselves when they are asked for."""

    def room(self, blueprint: Blueprint, starting: int) -> Room | None:
        """How many more replicas fit beside `starting` ones that hold nothing yet; None where the
        cluster grows."""
        if self.grows:
            return None
        bundles = replica_bundles(blueprint.spec, blueprint.device)
        need: dict[str, float] = {}
        for bundle in bundles:
            for name, amount in bundle.items():
                need[name] = need.get(name, 0.0) + amount
        fits = min(
            math.floor(round(self.free.get(name, 0.0) / amount, 6)) for name, amount in need.items()
        )
        why = f"the cluster is full: {missing_now(bundles, fits + 1, self.free)}"
        return Room(max(0, fits - starting), why)


def surroundings() -> Surroundings:
    """As Ray says. Blocks; raises what Ray raises where its control store does not answer."""
    alive = [node for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    return Surroundings(
        free=ray.available_resources(),  # type: ignore[no-untyped-call]
        grows=any(NODE_GROUP_LABEL in node.get("Labels", {}) for node in alive),
    )

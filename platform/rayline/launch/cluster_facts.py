"""What is known of a cluster at one moment, as plain values.

`cluster_state` reads them from Ray; `pending` and the preflight judge them, and tests make them up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from rayline.launch.capacity import Bundle, Node


@dataclass(frozen=True, slots=True)
class Leaving:
    """A node on which nothing new is placed, though it may be alive."""

    node: Node
    why: Literal["draining", "silent"]
    """draining: a cloud takes it back, or somebody asked Ray to drain it. silent: Ray takes it for
    alive, and its node manager does not answer."""
    at_s: float | None = None
    """Unix time at which it goes, where that is known."""


@dataclass(frozen=True, slots=True)
class Holder:
    """Somebody who holds resources: a placement group, or actors outside of any."""

    who: str
    """Such as `gang tiny-3d of job tiny-3d-1a2b3c4d`."""
    held: Mapping[str, Bundle]
    """Id of each node to what is held on it."""
    job: str = ""
    """Id that `rayline stop` takes; empty where it was not submitted as a job."""


@dataclass(frozen=True, slots=True)
class NodeType:
    """A kind of node that an autoscaler may launch."""

    name: str
    resources: Bundle
    have: int
    """Nodes of it that run or are on their way."""
    most: int
    """Nodes of it that may run at once."""
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Launch:
    """Nodes of one type that are on their way."""

    node_type: str
    count: int
    since_s: float | None = None
    """Unix time at which they were asked for, where that is known."""
    stage: str = "requested"
    """How far they are, in the autoscaler's word."""


@dataclass(frozen=True, slots=True)
class LaunchFailure:
    """Nodes that were asked for and did not come."""

    node_type: str
    reason: str
    at_s: float | None = None


@dataclass(frozen=True, slots=True)
class Scaling:
    """What an autoscaler may do, and what it is about."""

    types: tuple[NodeType, ...] = ()
    """Empty where its configuration cannot be read from here."""
    launches: tuple[Launch, ...] = ()
    failures: tuple[LaunchFailure, ...] = ()
    most_workers: int | None = None
    """Nodes beside the head that may run at once, of all types together."""
    refused: tuple[Bundle, ...] = ()
    """The kinds of bundles of which it says itself that nothing it may launch would do."""


@dataclass(frozen=True, slots=True)
class EnvironmentFailure:
    """A runtime environment that could not be set up."""

    who: str
    """Whose: an actor's class or name."""
    job: str
    """Ray's id of the driver that it belongs to."""
    error: str
    at_s: float = 0.0
    """Unix time at which it was given up."""


@dataclass(frozen=True, slots=True)
class ClusterFacts:
    """One look at a cluster."""

    nodes: tuple[Node, ...] = ()
    """Alive, and they stay."""
    leaving: tuple[Leaving, ...] = ()
    holders: tuple[Holder, ...] = ()
    scaling: Scaling | None = None
    """None where no nodes come by themselves."""
    environment_failures: tuple[EnvironmentFailure, ...] = ()
    asked: tuple[Bundle, ...] = ()
    """The kinds of bundles that Ray was asked for and has no place for yet."""
    now_s: float = 0.0
    """Unix time of the look."""

"""Why something waits for room on a cluster, in one sentence, with what to do about it.

The order of the questions is that of their weight: a runtime environment that fails, a label that
no node bears, what no node could ever hold (unless nodes leave, or come by themselves), and last
who holds what would do. A pure function of facts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from rayline.launch.capacity import (
    GRAIN,
    Bundle,
    Node,
    Shortage,
    amount_text,
    as_they_are,
    bearing,
    holds,
    shortage,
)
from rayline.launch.cluster_facts import ClusterFacts, Holder, Leaving, NodeType, Scaling

Kind = Literal[
    "environment", "label", "impossible", "leaving", "launch", "scaling", "limit", "held", "placing"
]
_RECENT_S = 900.0
"""What failed longer ago says nothing of now."""
_PLENTY = 2.0**60
_NAMED = 2
"""Holders that are named; the rest is counted."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is waited for."""

    bundles: Sequence[Bundle]
    """Each has to lie on one node."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Labels that those nodes have to bear."""
    job: str = ""
    """Ray's id of the driver that waits, to find its own runtime environment."""
    remedies: Mapping[str, str] = field(default_factory=dict)
    """By resource, what to change where no node could hold it."""
    label_field: str = "resources.labels"
    """Field of the spec that asks for the labels."""


@dataclass(frozen=True, slots=True)
class Pending:
    """One reason, and the way out of it."""

    kind: Kind
    reason: str
    fix: str

    def __str__(self) -> str:
        return f"{self.reason}: {self.fix}"


def why_pending(wanted: Wanted, facts: ClusterFacts) -> Pending:
    """The one reason for which `wanted` is not placed, and what to do."""
    for failure in facts.environment_failures:
        if failure.job == wanted.job and facts.now_s - failure.at_s < _RECENT_S:
            return Pending(
                "environment",
                f"the runtime environment of {failure.who} cannot be set up "
                f"({_gist(failure.error)})",
                "mend its runtime_env; the whole story is in runtime_env_setup-*.log on the node",
            )
    everything = [*facts.nodes, *(each.node for each in facts.leaving)]
    if wanted.labels and not bearing(everything, wanted.labels) and not _may_come(wanted, facts):
        return _no_label(wanted, everything)
    nodes = bearing(facts.nodes, wanted.labels)
    lacking = shortage(wanted.bundles, nodes)
    if lacking is not None:
        return _never_as_it_is(wanted, facts, nodes, lacking)
    if shortage(wanted.bundles, as_they_are(nodes)) is None:
        return Pending(
            "placing",
            "there is room, and Ray is placing it or an older request that is served first",
            "wait a few seconds; `ray status` shows what else waits",
        )
    if facts.scaling is not None:
        growing = _growing(wanted, facts.scaling, as_they_are(nodes), facts.now_s)
        if growing is not None and growing.kind == "limit":
            held = _held(wanted, facts, nodes)
            return replace(growing, reason=f"{growing.reason}, and {held.reason}")
        if growing is not None:
            return growing
    return _held(wanted, facts, nodes)


def _may_come(wanted: Wanted, facts: ClusterFacts) -> bool:
    """Whether an autoscaler may launch a node with the labels, as far as that can be told."""
    if facts.scaling is None:
        return False
    types = facts.scaling.types
    return not types or any(_bears(each, wanted.labels) for each in types)


def _bears(node_type: NodeType, labels: Mapping[str, str]) -> bool:
    return all(node_type.labels.get(key) == value for key, value in labels.items())


def _no_label(wanted: Wanted, nodes: Sequence[Node]) -> Pending:
    key, value = next(
        (
            (key, value)
            for key, value in sorted(wanted.labels.items())
            if not bearing(nodes, {key: value})
        ),
        next(iter(sorted(wanted.labels.items()))),
    )
    together = "" if not bearing(nodes, {key: value}) else " together with the other labels"
    known = sorted({node.labels[key] for node in nodes if key in node.labels})
    there = f"they have {key}={', '.join(known)}" if known else f"none has any {key}"
    return Pending(
        "label",
        f"no node bears the label {key}={value}{together} ({there})",
        f"start a node with it (`ray start --labels={key}={value}`, or `labels` of its type in the "
        f"cluster YAML), or change {wanted.label_field}",
    )


def _never_as_it_is(
    wanted: Wanted, facts: ClusterFacts, nodes: Sequence[Node], lacking: Shortage
) -> Pending:
    """No node that stays could hold it, even idle."""
    gone = [each for each in facts.leaving if bearing([each.node], wanted.labels)]
    if shortage(wanted.bundles, [*nodes, *(each.node for each in gone)]) is None:
        missed = next(each for each in gone if any(holds(each.node, b) for b in wanted.bundles))
        return _leaving(missed, facts.now_s)
    if facts.scaling is not None:
        growing = _growing(wanted, facts.scaling, nodes, facts.now_s)
        if growing is not None:
            return growing
    beyond = (
        "" if facts.scaling is None else ", and no node that the autoscaler may launch has more"
    )
    return Pending(
        "impossible",
        f"{lacking.text}{beyond}",
        wanted.remedies.get(lacking.resource, f"add nodes that have {lacking.resource}"),
    )


def _leaving(missed: Leaving, now_s: float) -> Pending:
    if missed.why == "silent":
        return Pending(
            "leaving",
            f"{missed.node}, which would hold it, is dying: its node manager does not answer",
            "wait until Ray has dropped it and another node has taken its place, or restart it",
        )
    when = "" if missed.at_s is None else f" and goes in {max(0.0, missed.at_s - now_s):.0f} s"
    return Pending(
        "leaving",
        f"{missed.node}, which would hold it, is draining{when}",
        "start another node like it, or wait for the one that takes its place",
    )


def _growing(
    wanted: Wanted, scaling: Scaling, nodes: Sequence[Node], now_s: float
) -> Pending | None:
    """What an autoscaler has to do with it; None where it has nothing."""
    if not scaling.types:
        if any(_alike(bundle, each) for bundle in wanted.bundles for each in scaling.refused):
            return Pending(
                "limit",
                "the autoscaler is at its limit: it says that nothing it may launch would do",
                "raise max_workers in the cluster YAML and `ray up` it again, or ask for less",
            )
        return _on_its_way(scaling, {launch.node_type for launch in scaling.launches}, now_s)
    fitting = [
        each
        for each in scaling.types
        if _bears(each, wanted.labels)
        and any(holds(_node_of(each, wanted), bundle) for bundle in wanted.bundles)
    ]
    if not fitting:
        return None
    launching = {launch.node_type: launch.count for launch in scaling.launches}
    to_come = [
        _node_of(each, wanted)
        for each in fitting
        for _ in range(_room_to_grow(each, scaling) + launching.get(each.name, 0))
    ]
    if shortage(wanted.bundles, [*nodes, *to_come]) is None:
        return _on_its_way(scaling, {each.name for each in fitting}, now_s)
    more = sum(_room_to_grow(each, scaling) for each in fitting)
    return _at_limit(fitting, scaling, f", {more} more would not do" if more else "")


def _alike(one: Bundle, other: Bundle) -> bool:
    return all(
        abs(one.get(name, 0.0) - other.get(name, 0.0)) < GRAIN for name in one.keys() | other.keys()
    )


def _room_to_grow(node_type: NodeType, scaling: Scaling) -> int:
    """How many nodes of the type may still be asked for."""
    room = max(0, node_type.most - node_type.have)
    if scaling.most_workers is None:
        return room
    return min(room, max(0, scaling.most_workers - sum(each.have for each in scaling.types)))


def _at_limit(fitting: Sequence[NodeType], scaling: Scaling, spare: str) -> Pending:
    counts = ", ".join(f"{each.have} of at most {each.most} {each.name}" for each in fitting)
    have = sum(each.have for each in scaling.types)
    overall = (
        f" and {have} of at most {scaling.most_workers} nodes in all"
        if scaling.most_workers is not None and have >= scaling.most_workers
        else ""
    )
    return Pending(
        "limit",
        f"the autoscaler is at its limit ({counts}{overall}{spare})",
        f"raise max_workers of {fitting[0].name} in the cluster YAML and `ray up` it again, end "
        "what holds the nodes, or ask for less",
    )


def _on_its_way(scaling: Scaling, names: set[str], now_s: float) -> Pending:
    failed = [
        each
        for each in scaling.failures
        if (not names or each.node_type in names)
        and (each.at_s is None or now_s - each.at_s < _RECENT_S)
    ]
    coming = [launch for launch in scaling.launches if launch.node_type in names]
    if failed and not coming:
        newest = max(failed, key=lambda each: each.at_s or 0.0)
        return Pending(
            "launch",
            f"the autoscaler could not launch {newest.node_type} ({_gist(newest.reason)})",
            "ask the provider for quota or another zone, or allow another type in the cluster YAML",
        )
    if coming:
        told = ", ".join(
            f"{launch.count} x {launch.node_type} {launch.stage}{_ago(launch.since_s, now_s)}"
            for launch in coming
        )
        reason = f"the cluster is growing ({told})"
    else:
        reason = "the autoscaler was asked for nodes and has not launched any yet"
    return Pending("scaling", reason, "wait; `ray status` shows how far the nodes are")


def _held(wanted: Wanted, facts: ClusterFacts, nodes: Sequence[Node]) -> Pending:
    """Who holds what would do."""
    would_do = [node for node in nodes if any(holds(node, bundle) for bundle in wanted.bundles)]
    names = {name for bundle in wanted.bundles for name in bundle}
    free = as_they_are(would_do)
    scarce = min(
        sorted(names, key=lambda name: (name != "GPU", name)),
        key=lambda name: sum(
            holds(node, {name: max(bundle.get(name, 0.0) for bundle in wanted.bundles)})
            for node in free
        ),
    )
    held = sorted(
        ((_held_by(holder, would_do, scarce), holder) for holder in facts.holders),
        key=lambda each: -each[0],
    )
    known = [(amount, holder) for amount, holder in held if amount > 0]
    total = sum(node.total.get(scarce, 0.0) for node in would_do)
    whole, places = amount_text(scarce, total), _places(would_do)
    if not known:
        taken = total - sum(node.available.get(scarce, 0.0) for node in would_do)
        return Pending(
            "held",
            f"tasks outside of any gang hold {taken:g} of the {whole} {places}",
            "wait for them, or end them (`ray list tasks` shows them)",
        )
    told = " and ".join(f"{holder.who} holds {amount:g}" for amount, holder in known[:_NAMED])
    more = "" if len(known) <= _NAMED else f" (and {len(known) - _NAMED} others the rest)"
    job = known[0][1].job
    end = f"`rayline stop {job}`" if job else "end it"
    return Pending(
        "held",
        f"{told} of the {whole} {places}{more}",
        f"wait for it, or {end}; or ask for less",
    )


def _held_by(holder: Holder, nodes: Sequence[Node], resource: str) -> float:
    return sum(holder.held.get(node.id, {}).get(resource, 0.0) for node in nodes)


def _places(nodes: Sequence[Node]) -> str:
    return f"on {nodes[0]}" if len(nodes) == 1 else f"on the {len(nodes)} nodes that could hold it"


def _node_of(node_type: NodeType, wanted: Wanted) -> Node:
    """A node of the type, as far as its resources are known before it runs."""
    unknown = {"memory"} if node_type.resources else {n for b in wanted.bundles for n in b}
    resources = {**dict.fromkeys(unknown, _PLENTY), **node_type.resources}
    return Node(node_type.name, "to come", resources, resources, dict(node_type.labels))


def _ago(since_s: float | None, now_s: float) -> str:
    return "" if since_s is None else f" {max(0.0, now_s - since_s):.0f} s ago"


def _gist(text: str) -> str:
    """The line that says what went wrong: of a traceback the last one, else the first."""
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    if not lines:
        return "no reason was given"
    return lines[-1 if any("Traceback (most recent" in line for line in lines) else 0][:200]

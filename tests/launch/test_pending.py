"""Why something waits: one sentence from made-up facts, for each reason and each mixture."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayline.launch.capacity import Bundle, Node, as_they_are, bearing, shortage
from rayline.launch.cluster_facts import (
    ClusterFacts,
    EnvironmentFailure,
    Holder,
    Launch,
    LaunchFailure,
    Leaving,
    NodeType,
    Scaling,
)
from rayline.launch.pending import Wanted, why_pending

NOW_S = 1000.0


def node(
    name: str, gpus: float, free: float | None = None, labels: Mapping[str, str] | None = None
) -> Node:
    available = gpus if free is None else free
    total = {"GPU": gpus, "CPU": 8.0}
    return Node(
        name * 8, f"10.0.0.{ord(name) - 96}", total, {"GPU": available, "CPU": 8.0}, labels or {}
    )


def facts(*nodes: Node, **more: object) -> ClusterFacts:
    return replace(ClusterFacts(nodes=nodes, now_s=NOW_S), **more)  # type: ignore[arg-type]


def two_by(gpus: float, **labels: str) -> Wanted:
    remedies = {"GPU": "lower plan.tensor"}
    return Wanted([{"GPU": gpus, "CPU": gpus}] * 2, labels, "0100", remedies)


LARGE = NodeType("large", {"GPU": 4.0, "CPU": 8.0}, have=1, most=1)


def test_no_node_has_so_many_gpus() -> None:
    told = why_pending(two_by(8), facts(node("a", 4), node("b", 2)))
    assert told.kind == "impossible"
    assert str(told) == "needs 8 GPUs on one node; the largest node has 4: lower plan.tensor"


def test_no_node_bears_the_label() -> None:
    nodes = node("a", 4, labels={"market": "on-demand"}), node("b", 4, labels={"market": "spare"})
    told = why_pending(two_by(2, market="spot"), facts(*nodes))
    assert told.kind == "label"
    assert told.reason == (
        "no node bears the label market=spot (they have market=on-demand, spare)"
    )
    assert "--labels=market=spot" in told.fix
    assert "resources.labels" in told.fix
    assert "none has any zone" in why_pending(two_by(2, zone="x"), facts(*nodes)).reason
    both = {"market": "on-demand", "zone": "x"}
    assert "zone=x" in why_pending(two_by(2, **both), facts(*nodes)).reason


def test_labels_that_no_node_bears_together() -> None:
    nodes = node("a", 4, labels={"m": "1", "z": "2"}), node("b", 4, labels={"m": "2", "z": "1"})
    told = why_pending(two_by(2, m="1", z="1"), facts(*nodes))
    assert (told.kind, "together" in told.reason) == ("label", True)


def test_another_gang_holds_it_and_is_named() -> None:
    held = {"aaaaaaaa": {"GPU": 3.0}, "bbbbbbbb": {"GPU": 2.0}}
    gang = Holder("gang tiny of job tiny-1a2b3c4d", held, "tiny-1a2b3c4d")
    actor = Holder("actor Cache", {"aaaaaaaa": {"GPU": 1.0}})
    elsewhere = Holder("gang far of job far-1", {"cccccccc": {"GPU": 4.0}}, "far-1")
    nodes = node("a", 4, 0), node("b", 4, 2), node("c", 1, 0)
    told = why_pending(two_by(3), facts(*nodes, holders=(actor, gang, elsewhere)))
    assert told.kind == "held"
    assert told.reason == (
        "gang tiny of job tiny-1a2b3c4d holds 5 and actor Cache holds 1 of the 8 GPUs on the 2 "
        "nodes that could hold it"
    )
    assert "`rayline stop tiny-1a2b3c4d`" in told.fix


def test_what_tasks_hold_is_told_too() -> None:
    told = why_pending(two_by(2), facts(node("a", 4, 1)))
    assert told.reason == (
        "tasks outside of any gang hold 3 of the 4 GPUs on node aaaaaaaa (10.0.0.1)"
    )


def test_a_node_that_would_hold_it_is_draining_or_dying() -> None:
    draining = Leaving(node("b", 8), "draining", NOW_S + 40)
    told = why_pending(two_by(4), facts(node("a", 2), leaving=(draining,)))
    assert told.kind == "leaving"
    assert (
        told.reason == "node bbbbbbbb (10.0.0.2), which would hold it, is draining and goes in 40 s"
    )
    silent = Leaving(node("b", 8), "silent")
    told = why_pending(two_by(4), facts(node("a", 2), leaving=(silent,)))
    assert "is dying: its node manager does not answer" in told.reason
    # With a node that would not do either, the size is the reason.
    assert why_pending(two_by(9), facts(node("a", 2), leaving=(draining,))).kind == "impossible"


def test_a_runtime_environment_that_fails_is_told_with_its_error() -> None:
    failed = EnvironmentFailure("Worker", "0100", "\npip: no such package nope\nmore", NOW_S - 5)
    told = why_pending(two_by(2), facts(node("a", 8), environment_failures=(failed,)))
    assert told.kind == "environment"
    assert "of Worker cannot be set up (pip: no such package nope)" in told.reason
    traced = replace(
        failed, error="[Node 10.0.0.1] Traceback (most recent call last):\n  File x\nOSError: no\n"
    )
    told = why_pending(two_by(2), facts(node("a", 8), environment_failures=(traced,)))
    assert "(OSError: no)" in told.reason
    another = replace(failed, job="0200")
    old = replace(failed, at_s=NOW_S - 5000)
    told = why_pending(two_by(2), facts(node("a", 8), environment_failures=(another, old)))
    assert told.kind == "placing"


@pytest.mark.parametrize(
    ("scaling", "kind", "words"),
    [
        (Scaling((LARGE,)), "limit", "at its limit (1 of at most 1 large)"),
        (Scaling((replace(LARGE, most=2),)), "limit", "1 more would not do"),
        (Scaling((replace(LARGE, most=9),)), "scaling", "has not launched any yet"),
        (
            Scaling((replace(LARGE, most=9), replace(LARGE, name="head2")), most_workers=2),
            "limit",
            "and 2 of at most 2 nodes in all",
        ),
        (
            Scaling((replace(LARGE, most=9, have=3),), (Launch("large", 2, NOW_S - 12),)),
            "scaling",
            "(2 x large requested 12 s ago)",
        ),
        (
            Scaling(
                (replace(LARGE, most=9),),
                failures=(LaunchFailure("large", "no quota\nat all", NOW_S - 9),),
            ),
            "launch",
            "could not launch large (no quota)",
        ),
        (
            Scaling(refused=({"GPU": 1.0}, {"GPU": 4.0, "CPU": 4.0})),
            "limit",
            "nothing it may launch would do",
        ),
        (Scaling(refused=({"GPU": 1.0},)), "scaling", "has not launched any yet"),
        (Scaling(launches=(Launch("x", 1, stage="setting-up"),)), "scaling", "1 x x setting-up"),
    ],
)
def test_what_the_autoscaler_has_to_do_with_it(scaling: Scaling, kind: str, words: str) -> None:
    told = why_pending(two_by(4), facts(node("a", 0), scaling=scaling))
    assert told.kind == kind
    assert words in told.reason


def test_what_no_type_of_node_has_never_comes() -> None:
    told = why_pending(two_by(8), facts(node("a", 4), scaling=Scaling((replace(LARGE, most=9),))))
    assert told.kind == "impossible"
    assert "no node that the autoscaler may launch has more" in told.reason
    unknown = NodeType("large", {}, 1, 9)
    assert (
        why_pending(two_by(8), facts(node("a", 4), scaling=Scaling((unknown,)))).kind == "scaling"
    )


def test_a_label_that_a_type_of_node_bears_may_come() -> None:
    spot = replace(LARGE, most=4, labels={"market": "spot"})
    told = why_pending(two_by(4, market="spot"), facts(node("a", 4), scaling=Scaling((spot,))))
    assert told.kind == "scaling"
    told = why_pending(two_by(4, market="x"), facts(node("a", 4), scaling=Scaling((spot,))))
    assert told.kind == "label"


def test_at_the_limit_the_holder_is_named_too() -> None:
    gang = Holder("gang tiny", {"aaaaaaaa": {"GPU": 4.0}, "bbbbbbbb": {"GPU": 4.0}})
    scaling = Scaling((replace(LARGE, have=2, most=2),))
    told = why_pending(
        two_by(4), facts(node("a", 4, 0), node("b", 4, 0), holders=(gang,), scaling=scaling)
    )
    assert told.kind == "limit"
    assert "2 of at most 2 large" in told.reason
    assert "gang tiny holds 8 of the 8 GPUs" in told.reason


amounts = st.integers(0, 8).map(float)
made_nodes = st.lists(
    st.tuples(st.sampled_from("abcdef"), amounts, amounts, st.sampled_from([{}, {"m": "1"}])),
    max_size=5,
    unique_by=lambda each: each[0],
)


@given(made_nodes, st.integers(1, 8).map(float), st.booleans(), st.booleans())
def test_whatever_the_nodes_one_reason_is_told_and_it_is_true(
    drawn: list[tuple[str, float, float, dict[str, str]]], gpus: float, labelled: bool, grows: bool
) -> None:
    nodes = [node(name, total, min(total, free), labels) for name, total, free, labels in drawn]
    labels = {"m": "1"} if labelled else {}
    bundles: list[Bundle] = [{"GPU": gpus}]
    told = why_pending(
        Wanted(bundles, labels), facts(*nodes, scaling=Scaling((LARGE,)) if grows else None)
    )
    eligible = bearing(nodes, labels)
    assert told.reason
    assert told.fix
    if shortage(bundles, as_they_are(eligible)) is None:
        assert told.kind == "placing"
    elif shortage(bundles, eligible) is None:
        assert told.kind in ("held", "limit")
    elif grows:
        assert told.kind in ("impossible", "label", "limit")
    else:
        assert told.kind == ("impossible" if eligible or not labelled else "label")

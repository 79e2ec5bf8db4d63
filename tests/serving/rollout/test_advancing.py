"""A rollout that goes by itself, second by second."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from rayline.serving.rollout import transitions
from rayline.serving.rollout.advancing import advance, goal_percent, replicas_for
from rayline.serving.rollout.allotting import Allotment, allot, bounded
from rayline.serving.rollout.gates import Finding, Verdict
from rayline.serving.rollout.release import Release
from rayline.serving.rollout.version import Asked
from rayline.spec import RolloutSpec, ScaleSpec

GOOD = Verdict("promote", "every gate kept")
WAIT = Verdict("wait", "3 of min_requests 50 answered")
BAD = Verdict("roll_back", "ttft p95 is 900 ms")


@dataclass
class Cluster:
    """Two versions, of which the second takes over; a replica is up the second after there is
    room for it."""

    rollout: RolloutSpec
    replicas: int = 1
    room: int = 100
    release: Release = field(init=False)
    up: dict[int, int] = field(init=False)
    shares: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        release = Release("chat")
        for number in (1, 2):
            asked = Asked(str(number), "m")
            release = transitions.begin(release, asked, 0, keep=5).release
            release = transitions.sized(release, self.replicas)
            release = transitions.ready(release, number, 0).release
        self.release = release
        self.up = {1: self.replicas, 2: 1}

    def run(self, verdict: Verdict, seconds: int, start_s: int = 0) -> list[str]:
        said = []
        scale = ScaleSpec(max_replicas=10)
        for now_s in range(start_s, start_s + seconds):
            change = advance(self.release, self.rollout, verdict, self.up[2], now_s)
            if change is not None:
                self.release = change.release
                said.append(f"{now_s}: {change.said}")
            self.shares.append(self.release.percent)
            for number, up in self.up.items():
                bounds = bounded(scale, allot(self.release, self.rollout, number, self.up[2]))
                wanted = min(max(up, bounds.min_replicas), bounds.max_replicas)
                free = self.room - sum(self.up.values())
                self.up[number] = up + min(wanted - up, free)
            carried = self.release.percent / 100 * self.release.replicas
            assert self.up[2] >= carried - 1e-9 or self.release.canary is None
        return said


def test_a_plain_deployment_takes_over_at_once() -> None:
    cluster = Cluster(RolloutSpec())
    assert cluster.run(WAIT, 5) == [
        "0: version 2 gets 100 % of the requests",
        "1: version 2 is the stable one",
    ]


def test_each_step_is_watched() -> None:
    cluster = Cluster(RolloutSpec(steps=(10, 50, 100), window_s=60, bake_s=30))
    assert cluster.run(GOOD, 300) == [
        "0: version 2 gets 10 % of the requests",
        "60: version 2 gets 50 % of the requests",
        "120: version 2 gets 100 % of the requests",
        "150: version 2 is the stable one",
    ]


def test_a_step_without_a_verdict_lasts() -> None:
    cluster = Cluster(RolloutSpec(steps=(10, 100)))
    assert len(cluster.run(WAIT, 1000)) == 1
    assert cluster.release.percent == 10


def test_a_broken_gate_rolls_back_the_second_it_is_found() -> None:
    cluster = Cluster(RolloutSpec(steps=(10, 100)))
    cluster.run(GOOD, 5)
    assert cluster.run(BAD, 5, 5) == ["5: version 2 is rolled back: ttft p95 is 900 ms"]
    baking = Cluster(RolloutSpec(bake_s=60))
    baking.run(GOOD, 5)
    assert baking.run(BAD, 5, 5)[0].startswith("5: version 2 is rolled back")


def test_steps_that_end_below_everything_wait_for_a_person() -> None:
    cluster = Cluster(RolloutSpec(steps=(10,)))
    cluster.run(GOOD, 1000)
    assert (cluster.release.canary, cluster.release.percent) == (2, 10)
    cluster.release = transitions.promote(cluster.release).release
    cluster.run(WAIT, 3, 1000)
    assert cluster.release.stable == 2


def test_a_share_set_by_a_person_stays_unless_a_gate_is_broken() -> None:
    cluster = Cluster(RolloutSpec(steps=(10, 100), window_s=10))
    cluster.release = transitions.aim(cluster.release, 30, 0).release
    cluster.run(GOOD, 500)
    assert cluster.release.percent == 30
    cluster.run(BAD, 1, 500)
    assert cluster.release.canary is None


def test_one_that_is_gone_back_to_is_asked_no_gate() -> None:
    cluster = Cluster(RolloutSpec(steps=(10, 100), bake_s=600), replicas=3)
    cluster.release = transitions.promote(cluster.release).release
    cluster.run(BAD, 4)
    assert cluster.release.stable == 2


def test_shadow_traffic_comes_before_the_first_share() -> None:
    cluster = Cluster(RolloutSpec(shadow_percent=20, window_s=30, steps=(10, 100)))
    assert len(cluster.run(WAIT, 100)) == 0
    assert cluster.run(GOOD, 10, 100) == ["100: version 2 gets 10 % of the requests"]


def test_the_evaluation_set_comes_before_the_first_share() -> None:
    cluster = Cluster(RolloutSpec(evaluation="questions.jsonl"))
    assert len(cluster.run(WAIT, 100)) == 0
    scored = Verdict("wait", "no requests", (Finding("score", "kept", 0.9, 0.8, ""),))
    assert len(cluster.run(scored, 10, 100)) == 2


def test_with_room_for_one_more_replica_the_share_grows_with_them() -> None:
    cluster = Cluster(RolloutSpec(), replicas=4, room=5)
    cluster.run(WAIT, 20)
    assert cluster.release.stable == 2
    assert sorted(set(cluster.shares)) == [0, 25, 50, 75, 100]


def test_a_version_that_bakes_leaves_the_old_one_whole() -> None:
    cluster = Cluster(RolloutSpec(bake_s=1000), replicas=4)
    cluster.run(WAIT, 100)
    assert (cluster.release.percent, cluster.up) == (100, {1: 4, 2: 4})


def test_a_version_that_bakes_without_room_waits_at_what_its_replicas_carry() -> None:
    cluster = Cluster(RolloutSpec(bake_s=1000), replicas=4, room=6)
    cluster.run(WAIT, 100)
    assert (cluster.release.percent, cluster.up) == (50, {1: 4, 2: 2})


@given(st.lists(st.integers(1, 100), min_size=1, max_size=4, unique=True), st.integers(1, 9))
def test_good_versions_arrive_whatever_the_steps(steps: list[int], replicas: int) -> None:
    rollout = RolloutSpec(steps=tuple(sorted(steps)), window_s=3, bake_s=2)
    cluster = Cluster(rollout, replicas=replicas)
    cluster.run(GOOD, 60)
    risen = cluster.shares[: cluster.shares.index(max(steps)) + 1]
    assert risen == sorted(risen)
    arrived = cluster.release.stable == 2
    assert arrived == (max(steps) == 100)


def test_replicas_for_a_share() -> None:
    assert [replicas_for(percent, 4) for percent in (1, 10, 25, 26, 50, 100)] == [1, 1, 1, 2, 2, 4]
    assert replicas_for(70, 10) == 7
    release = Cluster(RolloutSpec()).release
    assert goal_percent(release, RolloutSpec(steps=(5, 50))) == 5


def test_bounds_of_the_spec_are_kept() -> None:
    scale = ScaleSpec(min_replicas=2, max_replicas=4)
    assert bounded(scale, Allotment(least=9)).min_replicas == 4
    assert bounded(scale, Allotment(most=1)).max_replicas == 1
    assert bounded(scale, Allotment(most=1)).min_replicas == 1
    assert bounded(scale, Allotment()) == scale

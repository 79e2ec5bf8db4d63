"""Which version answers: shares, sessions, shadows."""

from __future__ import annotations

import random
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayline.serving.rollout.choosing import Draws, Weights, choose, copied, instead, weights
from rayline.serving.rollout.release import Release
from rayline.serving.rollout.version import Asked, Version
from rayline.spec import RolloutSpec


def served(percent: float, **more: object) -> Weights:
    return Weights(**{"model": "chat", "stable": 1, "canary": 2, "percent": percent, **more})


@pytest.mark.parametrize("percent", [1, 10, 25, 50, 90])
def test_the_share_is_within_a_point_over_a_thousand_requests(percent: float) -> None:
    known = served(percent)
    for seed in range(50):
        draws = Draws(random.Random(seed).random())
        canary = sum(choose(known, None, next(draws)) == 2 for _ in range(1000))
        assert abs(canary / 10 - percent) < 0.5


def test_the_share_of_several_gateways_together_is_as_good() -> None:
    gateways = [Draws(random.Random(seed).random()) for seed in range(4)]
    canary = sum(choose(served(10), None, next(gateways[n % 4])) == 2 for n in range(1000))
    assert abs(canary / 10 - 10) < 1


def test_the_share_of_sessions_is_what_chance_leaves() -> None:
    shares = []
    for seed in range(60):
        sessions = [f"{seed}-{number}" for number in range(1000)]
        shares.append(sum(choose(served(10), name, 0.0) == 2 for name in sessions) / 10)
    # A thousand independent sessions: one standard deviation is 0.95 points.
    assert abs(statistics.fmean(shares) - 10) < 0.3
    assert max(abs(share - 10) for share in shares) < 4


@given(st.text(), st.floats(0, 100), st.floats(0, 100))
def test_a_raised_share_moves_only_what_it_takes_in(first: str, one: float, other: float) -> None:
    low, high = sorted((one, other))
    for session in [first, *map(str, range(20))]:
        before, after = (choose(served(share), session, 0.5) for share in (low, high))
        assert (before, after) in [(1, 1), (1, 2), (2, 2)]


def test_a_session_stays_whatever_is_drawn_unless_sessions_do_not_count() -> None:
    answered = {choose(served(50), "a", draw / 100) for draw in range(100)}
    assert len(answered) == 1
    assert {choose(served(50, sticky=False), "a", d / 100) for d in range(100)} == {1, 2}
    assert {choose(served(50), None, draw / 100) for draw in range(100)} == {1, 2}


def test_another_canary_gets_other_sessions() -> None:
    sessions = [str(number) for number in range(1000)]
    first = {one for one in sessions if choose(served(10), one, 0) == 2}
    second = {one for one in sessions if choose(served(10, canary=3), one, 0) == 3}
    assert len(first & second) < 40


@pytest.mark.parametrize(("percent", "answers"), [(0, 1), (100, 2)])
def test_nothing_and_everything_are_exact(percent: float, answers: int) -> None:
    draws = [0.0, 0.5, 1 - 2**-53]
    assert {choose(served(percent), None, draw) for draw in draws} == {answers}
    assert {choose(served(percent), str(one), 0) for one in range(200)} == {answers}


def test_who_answers_where_a_version_has_no_replica_up() -> None:
    assert instead(served(10), 2) == 1
    assert instead(served(10), 1) == 2
    assert instead(served(0), 1) is None
    assert instead(Weights("chat", 1), 1) is None
    assert choose(Weights("chat", None), "a", 0.3) is None


def test_copies_go_to_a_version_that_has_no_share_yet() -> None:
    version = [
        Version(n, Asked(str(n), "m"), f"chat--v{n}", 0, state)
        for n, state in ((1, "serving"), (2, "ready"))
    ]
    release = Release("chat", tuple(version), stable=1, canary=2)
    known = weights(release, RolloutSpec(shadow_percent=20))
    assert sum(copied(known, draw / 100) == 2 for draw in range(100)) == 20
    assert choose(known, None, 0.0) == 1
    assert copied(served(10), 0.0) is None


def test_a_canary_that_is_not_up_is_nobodys_business() -> None:
    starting = Version(2, Asked("2", "m"), "chat--v2", 0)
    release = Release("chat", (starting,), stable=None, canary=2)
    assert weights(release, RolloutSpec()) == Weights("chat", None)

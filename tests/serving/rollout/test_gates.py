"""A version that is worse is found, one that is as good is not, and both say why."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Iterator

import pytest

from rayline.serving.rollout.gates import Scores, judge
from rayline.serving.rollout.measured import Measured
from rayline.serving.rollout.sketch import Sketch
from rayline.spec import RolloutSpec

ROLLOUT = RolloutSpec()
SPREAD = 0.6
"""Standard deviation of the logarithm of a time: its p95 is 2.7 times its median."""


def served(
    seed: int, *, slower: float = 1.0, requests: int = 1000, looks: int = 10
) -> Iterator[tuple[Measured, Measured]]:
    """Both versions at each of `looks`, of which the canary gets 10 % of the requests."""
    chance = random.Random(seed)
    stable = [Sketch(), Sketch()]
    canary = [Sketch(), Sketch()]
    every = requests // looks
    for number in range(1, requests + 1):
        whose, times = (canary, slower) if number % 10 == 0 else (stable, 1.0)
        time_ms = math.exp(chance.gauss(4, SPREAD)) * times
        whose[0].add(time_ms)
        whose[1].add(time_ms / 7)
        if number % every == 0:
            yield Measured(stable[0].count, 0, *stable), Measured(canary[0].count, 0, *canary)


def answers_until_rolled_back(seed: int, slower: float, looks: int = 10) -> int | None:
    """How many the canary had given when it was rolled back; None where it was not."""
    for stable, canary in served(seed, slower=slower, looks=looks):
        if judge(stable, canary, ROLLOUT).action == "roll_back":
            return canary.requests
    return None


def test_a_version_as_good_is_not_rolled_back() -> None:
    fallen = [seed for seed in range(1000) if answers_until_rolled_back(seed, 1.0) is not None]
    assert fallen == []


def test_nor_is_one_just_as_slow_as_is_allowed_at_every_look() -> None:
    # The worst that keeps the gate; looked at after each of the canary's hundred answers.
    fallen = [
        seed for seed in range(100) if answers_until_rolled_back(seed, 1.5, looks=100) is not None
    ]
    assert len(fallen) <= 1


def test_one_three_times_slower_is_rolled_back() -> None:
    needed = [answers_until_rolled_back(seed, 3.0, looks=50) for seed in range(200)]
    found = [answers for answers in needed if answers is not None]
    assert len(found) == 200
    assert statistics.median(found) <= 55
    assert max(found) <= 95


def test_the_reason_names_gate_value_and_threshold() -> None:
    stable = Measured(900, 0, Sketch([100.0] * 900))
    verdict = judge(stable, Measured(100, 0, Sketch([300.0] * 100)), ROLLOUT)
    assert verdict.action == "roll_back"
    assert verdict.reason == (
        "ttft p50 is 302.8 ms, 1.5 times the stable version's 99.9 ms allowed"
    )
    (broken, *_) = (finding for finding in verdict.findings if finding.state == "broken")
    assert broken.gate == "ttft p50"
    assert broken.value == pytest.approx(300, rel=0.01)
    assert broken.allowed == pytest.approx(150, rel=0.01)


def test_a_good_version_waits_for_enough_answers_and_is_promoted() -> None:
    verdicts = [judge(stable, canary, ROLLOUT) for stable, canary in served(7)]
    actions = [verdict.action for verdict in verdicts]
    assert actions[:4] == ["wait"] * 4
    assert verdicts[3].reason == "40 of min_requests 50 answered"
    assert actions[-1] == "promote"
    assert verdicts[-1].reason == "every gate kept over 100 requests"


def test_one_that_looks_slow_without_certainty_waits() -> None:
    stable = Measured(60, 0, Sketch([100.0] * 30 + [120.0] * 30))
    canary = Measured(60, 0, Sketch([100.0] * 29 + [200.0] * 31))
    verdict = judge(stable, canary, ROLLOUT)
    assert verdict.action == "wait"
    assert verdict.reason.endswith("not certain yet")


def test_failing_more_often_than_the_stable_version_is_found_early() -> None:
    stable = Measured(400, 4)
    assert judge(stable, Measured(10, 10), ROLLOUT).action == "roll_back"
    assert judge(stable, Measured(200, 40), ROLLOUT).action == "roll_back"
    verdict = judge(stable, Measured(100, 30), ROLLOUT)
    assert verdict.action == "roll_back"
    assert verdict.reason == (
        "error rate is 30.0%, the stable version's 1.0% and 2.0% more allowed"
    )
    assert judge(stable, Measured(100, 1), ROLLOUT).action == "promote"
    assert judge(stable, Measured(100, 5), ROLLOUT).action == "wait"


def test_failing_just_as_often_is_no_reason() -> None:
    chance, fallen = random.Random(1), 0
    for _ in range(300):
        stable, canary = (
            Measured(count, sum(chance.random() < 0.1 for _ in range(count)))
            for count in (900, 100)
        )
        fallen += judge(stable, canary, ROLLOUT).action == "roll_back"
    assert fallen == 0


def test_a_version_that_answers_nothing_is_slow() -> None:
    stable = Measured(500, 0, Sketch([100.0] * 500))
    silent = Measured()
    assert judge(stable, silent, ROLLOUT).action == "wait"
    waiting = judge(stable, silent, ROLLOUT, unanswered_ms=[140.0] * 40)
    assert waiting.action == "wait"
    hanging = judge(stable, silent, ROLLOUT, unanswered_ms=[30_000.0] * 40)
    assert hanging.action == "roll_back"
    assert hanging.reason.startswith("ttft p50 is")


def test_limits_hold_whatever_the_stable_version_does() -> None:
    rollout = RolloutSpec.parse(
        {
            "gates": {
                "error_rate": 0.05,
                "error_rate_more": None,
                "ttft": {"times": None, "limit_ms": 500},
                "tpot": {"times": None},
            }
        }
    )
    slow = Measured(200, 0, Sketch([900.0] * 200))
    verdict = judge(slow, slow, rollout)
    assert verdict.reason == "ttft p95 is 899.8 ms, 500 ms allowed"
    assert verdict.action == "roll_back"
    failing = Measured(200, 40)
    assert judge(failing, failing, rollout).reason == "error rate is 20.0%, 5.0% allowed"
    fast = Measured(200, 1, Sketch([90.0] * 200))
    assert judge(Measured(), fast, rollout).action == "promote"


def test_the_evaluation_set_is_a_gate_of_its_own() -> None:
    good = Measured(100)
    kept = judge(good, good, ROLLOUT, scores=Scores(canary=0.9, stable=0.91))
    assert kept.action == "promote"
    worse = judge(good, good, ROLLOUT, scores=Scores(canary=0.85, stable=0.9))
    assert worse.action == "roll_back"
    assert worse.reason == ("score is 0.850, 0.880 wanted (the stable version's 0.900 less 0.02)")
    least = RolloutSpec.parse({"gates": {"score": 0.95}})
    assert judge(good, good, least, scores=Scores(0.94, None)).action == "roll_back"


def test_without_any_gate_a_version_is_promoted() -> None:
    off = {"times": None}
    rollout = RolloutSpec.parse(
        {"gates": {"error_rate_more": None, "ttft": off, "tpot": off}, "min_requests": 5}
    )
    assert judge(Measured(50), Measured(5, 5), rollout).action == "promote"

"""How many replicas: properties of every decision, and the promises in numbers."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from rayline.serving.scaling.deciding import Decision, Room, decide, history_s
from rayline.serving.scaling.moment import Moment, moment
from rayline.serving.scaling.signals import readings
from rayline.serving.wire import Load
from rayline.spec import ScaleSpec

ROOM = Room(0, "no node has 4 CPU free")


def felt(at_s: float, asked: int, up: int, **more: object) -> Moment:
    """A moment in which replicas compute 16 requests each, and the others wait."""
    running = min(asked, 16 * up)
    kv_use = min(1.0, running / max(1, 20 * up))
    known = {"at_s": at_s, "up": up, "asked": asked, "waiting": asked - running, "held": 0}
    return Moment(**{**known, "kv_use": kv_use, **more})


def simulate(
    scale: ScaleSpec,
    load: Callable[[float], int],
    seconds: int,
    *,
    start_s: float = 0.0,
    up: int = 1,
) -> list[tuple[int, Decision]]:
    """Second by second: the load, the decision, and replicas that are up `start_s` after it."""
    moments: list[Moment] = []
    starting: list[float] = []
    decisions = []
    for second in range(seconds):
        up += sum(ready_s <= second for ready_s in starting)
        starting = [ready_s for ready_s in starting if ready_s > second]
        asked = load(second)
        moments.append(replace(felt(second, asked, up), held=asked if not up else 0))
        moments = [one for one in moments if one.at_s >= second - history_s(scale) - 1]
        decision = decide(second, moments, scale, up=up, starting=len(starting))
        decisions.append((asked, decision))
        more = decision.target - up - len(starting)
        starting += [second + start_s] * more if more > 0 else []
        if more < 0:
            up += more
    return decisions


scales = st.builds(
    ScaleSpec,
    min_replicas=st.integers(0, 3),
    max_replicas=st.integers(3, 9),
    target_ongoing_requests=st.integers(1, 40),
    waiting_per_replica=st.none() | st.floats(0.1, 10),
    kv_use=st.none() | st.floats(0.1, 1),
    ttft_ms=st.none() | st.floats(1, 1000),
    tpot_ms=st.none() | st.floats(1, 1000),
    upscale_delay_s=st.floats(0, 20),
    downscale_delay_s=st.floats(0, 60),
    idle_s=st.floats(0, 60),
)


def history(seed: int) -> list[Moment]:
    """Up to 90 seconds, up to second 100, in which everything changes all the time."""
    chance = random.Random(seed)
    moments = []
    for second in range(chance.randint(10, 100), 101):
        asked = chance.choice([0, 1, chance.randint(0, 300)])
        moments.append(
            Moment(
                at_s=second,
                up=chance.randint(0, 9),
                asked=asked,
                waiting=chance.randint(0, asked),
                held=0,
                kv_use=chance.random(),
                ttft_ms=chance.choice([None, chance.uniform(0.1, 5000)]),
                tpot_ms=chance.choice([None, chance.uniform(0.1, 5000)]),
            )
        )
    return moments


histories = st.integers(0, 2**32).map(history)


@given(scales, histories, st.integers(0, 9), st.integers(0, 3), st.none() | st.integers(0, 4))
def test_never_outside_the_bounds_nor_more_than_fits(
    scale: ScaleSpec, moments: list[Moment], up: int, starting: int, room: int | None
) -> None:
    free = None if room is None else replace(ROOM, replicas=room)
    decision = decide(100, moments, scale, up=up, starting=starting, room=free)
    if room is None:
        assert scale.min_replicas <= decision.target <= scale.max_replicas
    assert decision.target <= scale.max_replicas
    if room is not None:
        assert decision.target <= max(up + starting + room, 0)
    assert decision.why
    # A past moment may decide, in which something was measured that is not measured now.
    felt = {reading.signal for one in moments for reading in readings(one, scale)}
    assert decision.signal in felt


@given(scales, histories, st.integers(0, 9), st.integers(0, 200), st.floats(1, 4))
def test_more_load_never_gives_fewer_replicas(
    scale: ScaleSpec, moments: list[Moment], up: int, more: int, times: float
) -> None:
    heavier = [
        replace(
            one,
            asked=one.asked + more,
            waiting=one.waiting + more // 2,
            kv_use=min(1.0, one.kv_use * times),
            ttft_ms=None if one.ttft_ms is None else one.ttft_ms * times,
            tpot_ms=None if one.tpot_ms is None else one.tpot_ms * times,
        )
        for one in moments
    ]
    light = decide(100, moments, scale, up=up).target
    heavy = decide(100, heavier, scale, up=up).target
    assert heavy >= light


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 9), st.integers(0, 400))
def test_steady_load_comes_to_rest(up: int, asked: int) -> None:
    scale = ScaleSpec(min_replicas=0, max_replicas=9, downscale_delay_s=10, idle_s=20)
    targets = [decision.target for _, decision in simulate(scale, lambda _: asked, 200, up=up)]
    assert len(set(targets[-100:])) == 1


def test_ten_times_the_load_is_answered_within_the_delay() -> None:
    scale = ScaleSpec(max_replicas=8, target_ongoing_requests=4, upscale_delay_s=5)
    step_s, start_s = 30, 20
    decisions = simulate(scale, lambda s: 2 if s < step_s else 20, 120, start_s=start_s)
    grown = next(s for s, (_, decision) in enumerate(decisions) if decision.target > 1)
    assert step_s < grown <= step_s + 5
    assert decisions[grown][1].target == 5  # 20 requests, 4 to a replica
    assert decisions[grown][1].signal == "requests per replica"
    assert decisions[grown - 1][1].why_not == (
        "requests per replica 20 of 4 asks for 5, not yet throughout upscale_delay_s 5"
    )
    # While they start, nothing more is asked for.
    assert {decision.target for _, decision in decisions[grown:]} == {5}


def test_a_sawtooth_does_not_flap() -> None:
    scale = ScaleSpec(max_replicas=10, target_ongoing_requests=4, downscale_delay_s=60)
    for period_s in (7, 20, 55):
        decisions = simulate(scale, lambda s, p=period_s: 2 + 38 * (s % p) // p, 600, start_s=10)
        targets = [decision.target for _, decision in decisions[120:]]
        assert len(set(targets)) == 1, period_s
    # One that is slower than the delay is followed: up once and down once a period.
    decisions = simulate(scale, lambda s: 2 + 38 * abs(s % 600 - 300) // 300, 2400, start_s=10)
    targets = [decision.target for _, decision in decisions]
    turns = _turns(targets)
    assert 6 <= turns <= 8, turns


def _turns(targets: list[int]) -> int:
    """How often the direction changes."""
    steps = [b - a for a, b in pairwise(targets) if a != b]
    return sum((a > 0) != (b > 0) for a, b in pairwise(steps))


def test_to_zero_and_back() -> None:
    scale = ScaleSpec(min_replicas=0, max_replicas=3, idle_s=30, downscale_delay_s=120)
    decisions = simulate(scale, lambda s: int(s < 10 or s >= 60), 100, start_s=15)
    targets = [decision.target for _, decision in decisions]
    assert targets[:40] == [1] * 40  # busy until 10, idle since
    assert "nobody asks, not yet throughout idle_s 30" in decisions[30][1].why_not
    assert targets[41:60] == [0] * 19
    assert targets[60:] == [1] * 40  # at once, by the one request that is held


def test_a_model_that_must_stay_does_not_go_to_zero() -> None:
    decisions = simulate(ScaleSpec(idle_s=5, downscale_delay_s=5), lambda _: 0, 50)
    assert {decision.target for _, decision in decisions} == {1}


def test_each_signal_can_decide_and_is_named() -> None:
    scale = ScaleSpec(max_replicas=8, ttft_ms=100, tpot_ms=20, upscale_delay_s=0)
    calm = felt(8, 8, 2)
    for change, signal in [
        ({"waiting": 12, "asked": 20}, "waiting per replica"),
        ({"kv_use": 0.99}, "KV cache use"),
        ({"ttft_ms": 250.0}, "TTFT ms"),
        ({"tpot_ms": 30.0}, "TPOT ms"),
        ({"asked": 100}, "requests per replica"),
    ]:
        decision = decide(9, [calm, replace(calm, at_s=9, **change)], scale, up=2)
        assert decision.signal == signal
        assert decision.target > 2
        assert decision.value > decision.threshold
        assert f"asks for {decision.target}" in decision.why


def test_more_replicas_than_requests_are_never_asked_for() -> None:
    scale = ScaleSpec(max_replicas=8, ttft_ms=100, upscale_delay_s=0)
    slow = replace(felt(9, 2, 2), ttft_ms=10_000.0)
    assert decide(9, [slow], scale, up=2).target == 2


def test_why_not_names_the_limit() -> None:
    scale = ScaleSpec(max_replicas=3, upscale_delay_s=0)
    loaded = [felt(9, 100, 1)]
    assert decide(9, loaded, scale, up=1).why_not == "7 asked for; max_replicas is 3"
    cramped = decide(9, loaded, scale, up=1, room=ROOM)
    assert (cramped.target, cramped.why_not) == (1, "7 asked for; no node has 4 CPU free")
    one_more = decide(9, loaded, scale, up=1, room=replace(ROOM, replicas=1))
    assert one_more.target == 2
    assert decide(9, [felt(9, 0, 2)], ScaleSpec(), up=0).target == 1


def test_nothing_is_taken_away_before_it_was_watched_for_the_delay() -> None:
    scale = ScaleSpec(max_replicas=4, downscale_delay_s=60)
    moments = [felt(second, 0, 4) for second in range(100)]
    assert decide(59, moments[:60], scale, up=4).target == 4
    assert decide(99, moments, scale, up=4).target == 1
    assert decide(0, [], scale, up=4).target == 4


def test_replicas_are_kept_by_targets_a_fifth_lower() -> None:
    scale = ScaleSpec(max_replicas=4, target_ongoing_requests=10, downscale_delay_s=0)
    assert decide(9, [felt(9, 9, 2)], scale, up=2).target == 2
    assert decide(9, [felt(9, 8, 2)], scale, up=2).target == 1


def test_a_moment_is_the_sum_of_what_replicas_say() -> None:
    together = moment(3.0, [Load(2, 5, 0.5), Load(0, 1, 0.1)], held=4, ttft_ms=7.0)
    assert together == Moment(3.0, 2, 12, 2, 4, 0.3, 7.0, None)
    assert moment(3.0, []).kv_use == 0


def test_targets_that_are_off_are_not_read() -> None:
    scale = ScaleSpec(waiting_per_replica=None, kv_use=None)
    assert [reading.signal for reading in readings(felt(0, 5, 1), scale)] == [
        "requests per replica"
    ]

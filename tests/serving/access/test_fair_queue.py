"""Who is next: shares by weight, classes in order, bounds, and nobody forgotten."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from rayline.serving.access.fair_queue import FairQueue, Joined, Ticket
from rayline.serving.access.keys import ApiKey
from rayline.serving.requests import Refusal


def key(name: str, weight: int = 1, priority: str = "normal") -> ApiKey:
    return ApiKey(id=name, name=name, weight=weight, priority=priority)  # type: ignore[arg-type]


def queue(max_waiting: int = 10_000, per_key: int = 10_000) -> FairQueue[str]:
    return FairQueue(max_waiting=max_waiting, max_waiting_per_key=per_key)


def joined(waiting: FairQueue[str], who: ApiKey, cost: int = 1, item: str = "") -> Ticket[str]:
    answer = waiting.join(who, cost, item or who.id, 0.0)
    assert isinstance(answer, Joined)
    return answer.ticket


def served(waiting: FairQueue[str], count: int) -> list[str]:
    found = [waiting.next(0.0) for _ in range(count)]
    return [ticket.item for ticket in found if ticket is not None]


def test_a_flood_of_one_key_does_not_hold_up_another() -> None:
    waiting = queue()
    for _ in range(500):
        joined(waiting, key("greedy"))
    joined(waiting, key("modest"))
    assert "modest" in served(waiting, 2)


def test_keys_get_what_their_weights_say() -> None:
    waiting = queue()
    for _ in range(300):
        for weight in (1, 2, 3):
            joined(waiting, key(str(weight), weight), cost=100)
    assert Counter(served(waiting, 300)) == {"1": 50, "2": 100, "3": 150}


@settings(deadline=None, max_examples=30)
@given(st.integers(min_value=0, max_value=10_000))
def test_by_cost_no_key_is_ahead_by_more_than_a_request_of_each(seed: int) -> None:
    # Theorem 1 of the paper: while two keys wait, their normalized service differs by at most the
    # largest request of the one plus that of the other.
    chance, waiting = random.Random(seed), queue()
    weights = {"a": 1, "b": 2, "c": 5}
    for name, weight in weights.items():
        for _ in range(200):
            cost = chance.randint(1, 50)
            joined(waiting, key(name, weight), cost, f"{name} {cost}")
    left, done = Counter(dict.fromkeys(weights, 200)), dict.fromkeys(weights, 0.0)
    while all(left.values()):
        name, cost = served(waiting, 1)[0].split()
        left[name] -= 1
        done[name] += int(cost) / weights[name]
        apart = max(done.values()) - min(done.values())
        assert apart <= 50 / 1 + 50 / 2


def test_who_was_idle_has_saved_nothing_up() -> None:
    waiting = queue()
    for _ in range(100):
        joined(waiting, key("busy"))
    assert len(served(waiting, 50)) == 50
    for _ in range(50):
        joined(waiting, key("late"))
    assert Counter(served(waiting, 20)) == {"busy": 10, "late": 10}


def test_a_higher_class_goes_first() -> None:
    waiting = queue()
    for priority in ("low", "normal", "high"):
        for _ in range(2):
            joined(waiting, key(priority, priority=priority))
    assert served(waiting, 9) == ["high", "high", "normal", "normal", "low", "low"]


def test_what_is_over_a_bound_is_refused_at_once() -> None:
    waiting = queue(max_waiting=3, per_key=2)
    for _ in range(2):
        joined(waiting, key("one"))
    refused = waiting.join(key("one"), 1, "one", 0.0)
    assert isinstance(refused, Refusal)
    assert refused.status == 429
    assert refused.retry_after_s == 1
    assert "2 requests of this key" in refused.message
    joined(waiting, key("two"))
    refused = waiting.join(key("three"), 1, "three", 0.0)
    assert isinstance(refused, Refusal)
    assert "3 requests" in refused.message
    assert len(waiting) == 3


def test_a_full_queue_makes_room_for_a_higher_class() -> None:
    waiting = queue(max_waiting=3)
    joined(waiting, key("n"), item="normal")
    joined(waiting, key("l", priority="low"), item="low 1")
    joined(waiting, key("l", priority="low"), item="low 2")
    answer = waiting.join(key("h", priority="high"), 1, "high", 0.0)
    assert isinstance(answer, Joined)
    assert answer.displaced is not None
    assert answer.displaced.item == "low 2"
    joined(waiting, key("n"), item="normal 2")
    assert isinstance(waiting.join(key("l", priority="low"), 1, "low 3", 0.0), Refusal)
    assert len(waiting) == 3


def test_who_leaves_is_not_called_and_leaves_his_place() -> None:
    waiting = queue(max_waiting=2)
    gone = joined(waiting, key("gone"))
    joined(waiting, key("stays"))
    waiting.leave(gone)
    waiting.leave(gone)
    joined(waiting, key("third"))
    assert served(waiting, 5) == ["stays", "third"]
    assert len(waiting) == 0


def test_how_long_to_wait_follows_the_pace() -> None:
    waiting = queue(max_waiting=40)
    for _ in range(40):
        joined(waiting, key("one"))
    for second in range(20):
        assert waiting.next(float(second)) is not None
    assert 10 < waiting.wait_s() <= 20


@settings(deadline=None)
@given(st.lists(st.sampled_from("abcxyz<>"), max_size=400))
def test_everybody_is_called_once_or_has_left(steps: list[str]) -> None:
    waiting, tickets, called = queue(), [], []
    for step in steps:
        if step == ">":
            ticket = waiting.next(0.0)
            called += [] if ticket is None else [ticket.number]
        elif step == "<":
            if tickets:
                waiting.leave(tickets.pop())
        else:
            priority = {"x": "low", "y": "high"}.get(step, "normal")
            tickets.append(joined(waiting, key(step, priority=priority)))
    assert len(called) == len(set(called))
    while (ticket := waiting.next(0.0)) is not None:
        called.append(ticket.number)
    assert len(called) == len(set(called))
    assert {ticket.number for ticket in tickets} <= set(called)
    assert len(waiting) == 0


def test_memory_follows_what_waits() -> None:
    waiting = queue()
    kept = waiting._classes["normal"]
    for number in range(2_000):
        ticket = joined(waiting, key(str(number)))
        waiting.leave(ticket) if number % 2 else waiting.next(0.0)
    assert len(kept.heap) + len(kept.finish) < 100
    joined(waiting, key("stays"))
    for _ in range(2_000):
        waiting.leave(joined(waiting, key("comes and goes")))
    assert len(kept.heap) + len(kept.finish) < 100

"""What the gang does about a failure, as a function of what happened before."""

from hypothesis import given
from hypothesis import strategies as st

from rayline.actors.failure import Failure, FailureKind
from rayline.actors.policy import Past, decide, kept_because, pause_s
from rayline.errors import WorkerError
from rayline.spec import RecoverySpec

LOSSES: list[FailureKind] = ["hung", "died", "lost_contact"]


def failure(kind: FailureKind, at_s: float = 0.0, problem: str = "gone", rank: int = 1) -> Failure:
    return Failure(rank, kind, WorkerError("worker", problem), at_s)


@given(kind=st.sampled_from(LOSSES), done=st.integers(0, 5), allowed=st.integers(0, 5))
def test_what_was_lost_is_replaced_as_often_as_allowed(
    kind: FailureKind, done: int, allowed: int
) -> None:
    past = [Past(failure("died"), number) for number in range(done)]
    decision = decide(failure(kind), 9, past, RecoverySpec(max_restarts=allowed))
    assert (decision.action == "restart") == (done < allowed)
    assert "rank 1" in decision.reason


@given(st.lists(st.floats(0, 1000), max_size=12), st.integers(1, 4), st.floats(1, 500))
def test_only_restarts_within_the_window_are_counted(
    times_s: list[float], allowed: int, window_s: float
) -> None:
    now_s = 1000.0
    past = [Past(failure("died", at_s), step) for step, at_s in enumerate(sorted(times_s))]
    recent = sum(now_s - at_s <= window_s for at_s in times_s)
    spec = RecoverySpec(max_restarts=allowed, window_s=window_s)
    decision = decide(failure("died", now_s), 99, past, spec)
    assert (decision.action == "restart") == (recent < allowed)


def test_a_refusal_is_final_however_many_restarts_are_left() -> None:
    decision = decide(failure("refused"), 5, [], RecoverySpec(max_restarts=99))
    assert decision.action == "stop"


def test_code_that_raises_the_same_twice_stops_the_job() -> None:
    spec = RecoverySpec(max_restarts=99)
    first = failure("raised", problem="KeyError: 'x', at a.py:3", rank=0)
    assert decide(first, 6, [], spec).action == "restart"
    again = failure("raised", problem="KeyError: 'x', at a.py:3", rank=2)
    decision = decide(again, 6, [Past(first, 6)], spec)
    assert decision.action == "stop"
    assert "KeyError: 'x', at a.py:3" in decision.reason
    other = failure("raised", problem="OSError: busy, at b.py:9")
    assert decide(other, 6, [Past(first, 6)], spec).action == "restart"


def test_code_that_raises_stops_the_job_that_allows_no_restart() -> None:
    assert decide(failure("raised"), 5, [], RecoverySpec()).action == "stop"


def test_a_slow_rank_is_replaced_once_where_the_spec_says_so_and_a_restart_is_left() -> None:
    cause = failure("slow", at_s=500.0)
    assert kept_because(cause, [], RecoverySpec(max_restarts=9)) == "recovery.stragglers is report"
    spec = RecoverySpec(max_restarts=2, stragglers="replace", window_s=100.0)
    assert kept_because(cause, [], spec) == ""
    assert decide(cause, 7, [], spec).reason == "rank 1 is slow; restart 1 of 2"
    other = [Past(failure("slow", 450.0, rank=2), 3, frozenset({2}))]
    assert kept_because(cause, other, spec) == ""
    assert "restarts allows no more than 2" in kept_because(cause, other * 2, spec)
    # A new process in its place was no faster.
    again = [Past(failure("slow", 450.0, rank=0), 3, frozenset({0, 1}))]
    assert "it was replaced before" in kept_because(cause, again, spec)
    assert kept_because(cause, [Past(failure("slow", 350.0), 3, frozenset({1}))] * 3, spec) == ""


def test_only_fruitless_restarts_are_waited_out_and_ever_longer() -> None:
    lost = failure("died")
    assert pause_s(5, []) == 0
    assert pause_s(5, [Past(lost, 4)]) == 0
    fruitless = [pause_s(5, [Past(lost, 5)] * times) for times in range(1, 12)]
    assert fruitless[:4] == [1, 2, 4, 8]
    assert fruitless == sorted(fruitless)
    assert fruitless[-1] == 60

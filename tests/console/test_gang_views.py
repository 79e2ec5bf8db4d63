"""From tags and events to the map and the line of time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from rayline.actors.failure import slow_of, worker_name
from rayline.actors.straggler import Straggler
from rayline.console.gang_views import gang_view, rank_of, timeline_view
from rayline.spec import ParallelPlan
from rayline.tracking import GangRecord, RunEvent, RunSummary, Seat, gang_tags, read_gangs

START = datetime(2026, 11, 27, 12, 0, tzinfo=UTC)
PLAN = ParallelPlan(data=2, tensor=2)


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def gang(seconds: float, epoch: int, pids: list[int], node: str = "a") -> GangRecord:
    seats = [
        Seat(rank, str(PLAN.coordinate(rank)), f"{node}{rank // 2}", f"10.0.0.{rank // 2}", pid)
        for rank, pid in enumerate(pids)
    ]
    return GangRecord(at(seconds), epoch, tuple(seats))


def summary(ended: float | None = None) -> RunSummary:
    ended_at = None if ended is None else at(ended)
    return RunSummary("r", "r", "running", START, ended_at, None, 1, 1.0, "")


BEFORE, AFTER = gang(1, 1, [11, 12, 13, 14]), gang(20, 2, [11, 12, 93, 14])
RESTARTED = RunEvent(at(15), "restarted", "rank 2 was lost; restart 1 of 3: its process ended: x")
RECOVERED = RunEvent(at(25), "recovered", "10.00 s from seeing the loss to the next finished step")


@given(
    seats=st.integers(0, 300),
    seconds=st.floats(0, 1e6),
    node=st.text("0123456789abcdef", min_size=12, max_size=12),
)
def test_a_gang_is_read_back_from_its_tags(seats: int, seconds: float, node: str) -> None:
    plan = ParallelPlan(data=max(1, seats))
    places = tuple(
        Seat(rank, str(plan.coordinate(rank)), node, "2001:db8::1", 4_000_000 + rank)
        for rank in range(seats)
    )
    first, second = GangRecord(at(seconds), 1, places), GangRecord(at(seconds + 1), 2, places)
    tags = {**gang_tags(second), **gang_tags(first), "rayline.plan": "x"}
    assert all(len(text) < 8000 for text in tags.values())
    assert read_gangs(tags) == ([first, second] if seats else [])


def test_the_map_says_where_each_rank_is_and_who_took_over() -> None:
    view = gang_view([BEFORE, AFTER], [RESTARTED, RECOVERED], None)
    assert view is not None
    assert (view.epoch, view.beginnings) == (2, 2)
    assert [(node.node, node.ranks) for node in view.nodes] == [("a0", (0, 1)), ("a1", (2, 3))]
    assert [seat.state for seat in view.seats] == ["steps", "steps", "replaced", "steps"]
    assert "process 13 on node a1" in view.seats[2].note
    third = view.seats[3]
    assert (third.pipeline, third.data, third.context, third.tensor) == (0, 1, 0, 1)
    assert gang_view([], [RESTARTED], None) is None


def test_between_a_loss_and_the_next_beginning_a_rank_is_lost() -> None:
    lost = gang_view([BEFORE], [RESTARTED], None)
    assert lost is not None
    assert [seat.state for seat in lost.seats] == ["steps", "steps", "lost", "steps"]
    over = gang_view([BEFORE], [RESTARTED], at(30))
    assert over is not None
    assert {seat.state for seat in over.seats} == {"steps"}


def test_who_is_slow_is_told_in_the_drivers_own_words() -> None:
    slow = slow_of(Straggler(1, 2.1, 1, 40), PLAN.coordinate(1), "10.0.0.1").error
    told = f"{slow.subject} {slow.problem}; it stays: because"
    view = gang_view([AFTER], [RunEvent(at(30), "straggler", told)], None)
    assert view is not None
    assert [seat.state for seat in view.seats] == ["steps", "slow", "steps", "steps"]
    assert "takes 2.1 times as long" in view.seats[1].note
    assert rank_of(worker_name(17, PLAN.coordinate(1))) == 17
    assert rank_of("nodes are to go") is None


def test_the_line_of_time_has_the_loss_and_what_followed() -> None:
    line = timeline_view(summary(40), [BEFORE, AFTER], [RESTARTED, RECOVERED])
    assert [moment.kind for moment in line.moments] == ["began", "restarted", "began", "recovered"]
    (outage,) = line.outages
    assert (outage.began_at, outage.ended_at, outage.rank) == (at(15), at(25), 2)
    assert outage.replaced == (
        "rank 2: process 93 on node a1 (10.0.0.1) in place of process 13 on node a1 (10.0.0.1)",
    )
    twice = [RESTARTED, RunEvent(at(17), "restarted", "rank 3 was lost"), RECOVERED]
    first, second = timeline_view(summary(), [BEFORE, AFTER], twice).outages
    assert (first.ended_at, second.ended_at) == (None, at(25))

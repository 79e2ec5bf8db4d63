"""A run followed from afar, through a real store: its steps, its events, its driver's end."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from rayline.errors import SpecError
from rayline.spec import StepReport, TrackingSpec
from rayline.tracking import RunNews, driver_lives, follow_run, open_run
from rayline.tracking.following import SILENCE_S
from rayline.tracking.store import connect, experiment_id

Reports = Callable[[int], StepReport]


class Clock:
    """Goes on only while somebody sleeps, and then does what was planned for that second."""

    def __init__(self, plans: dict[int, Callable[[], object]] | None = None) -> None:
        self.now_s = 0.0
        self._plans = plans or {}

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        self._plans.get(round(self.now_s), lambda: None)()


def followed(tracking: TrackingSpec, run_id: str, clock: Clock) -> Iterator[RunNews]:
    return follow_run(tracking, run_id, clock, clock.sleep)


@pytest.fixture
def abandoned(tracking: TrackingSpec) -> str:
    """A run that the store calls running, and that nobody records."""
    client = connect(tracking)
    run = client.create_run(experiment_id(client, tracking), run_name="abandoned")
    run_id: str = run.info.run_id
    return run_id


def test_steps_and_events_are_told_once_until_the_run_has_ended(
    tracking: TrackingSpec, report: Reports
) -> None:
    run = open_run(tracking, name="one", params={"steps": 3, "stop_after_step": None}, tags={})

    def finish() -> None:
        run.observe(report(3))
        run.event("restarted", "rank 1 was lost")
        run.finish("finished")

    news = list(followed(tracking, run.run_id, Clock({2: finish})))
    assert [one.summary.status for one in news] == ["running", "running", "finished"]
    assert [event.kind for one in news for event in one.events] == ["restarted"]
    assert (news[-1].summary.step, news[-1].last_step) == (3, 3)
    assert not driver_lives(tracking, run.run_id)


def test_a_driver_that_is_gone_is_known_by_its_silence(
    tracking: TrackingSpec, abandoned: str
) -> None:
    client = connect(tracking)

    def record() -> None:
        client.log_metric(abandoned, "loss", 2.0, step=1)

    clock = Clock({10: record})
    news = list(followed(tracking, abandoned, clock))
    assert news[-1].summary.status == "running"
    assert news[-1].silent_s >= SILENCE_S
    assert clock.now_s == pytest.approx(10 + SILENCE_S, abs=1)


def test_whether_a_driver_lives_is_told_by_the_first_thing_it_records(
    tracking: TrackingSpec, abandoned: str
) -> None:
    silent = Clock()
    assert not driver_lives(tracking, abandoned, silent, silent.sleep)
    client = connect(tracking)
    alive = Clock({4: lambda: client.log_metric(abandoned, "system/cpu", 7.0, step=1)})
    assert driver_lives(tracking, abandoned, alive, alive.sleep)
    assert alive.now_s == 4


def test_a_resumed_run_ends_with_its_new_last_step(tracking: TrackingSpec) -> None:
    with open_run(tracking, name="two", params={"steps": 3}, tags={}) as run:
        pass
    with open_run(tracking, name="two", params={"steps": 9}, tags={}, run_id=run.run_id):
        pass
    (news,) = followed(tracking, run.run_id, Clock())
    assert news.last_step == 9


def test_a_run_that_is_not_there_is_told(tracking: TrackingSpec) -> None:
    with pytest.raises(SpecError, match="no such run"):
        next(followed(tracking, "0" * 32, Clock()))

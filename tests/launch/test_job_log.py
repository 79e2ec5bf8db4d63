"""A log over a connection that breaks: everything once, in order."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from rayline.launch import job_log
from rayline.launch.job_log import JobLog

TEXT = "one\ntwo\nthree\nfour\n"


class BreakingDashboard:
    """Sends the log from its beginning, and breaks off a little later on every connection: with an
    error, or in good order as a dashboard does that goes down."""

    def __init__(self, lengths: list[int], orderly: bool = False) -> None:
        self.lengths = lengths
        self.orderly = orderly
        self.connections = 0

    def log(self, job_id: str) -> str:
        return TEXT

    def follow_log(self, job_id: str, over: threading.Event) -> Iterator[str]:
        length = self.lengths[min(self.connections, len(self.lengths) - 1)]
        self.connections += 1
        for start in range(0, length, 3):
            yield TEXT[start : min(start + 3, length)]
        if length < len(TEXT) and not self.orderly:
            raise ConnectionResetError("broken")


def followed(dashboard: Any, seconds: float) -> str:
    heard: list[str] = []
    with JobLog(dashboard, "job", heard.append) as log:
        log.follow(seconds)
    return "".join(heard)


@pytest.mark.parametrize("orderly", [False, True])
def test_nothing_is_lost_or_told_twice_when_the_line_breaks(
    orderly: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job_log, "_RETRY_S", 0.05)
    dashboard = BreakingDashboard([5, 4, len(TEXT)], orderly)
    assert followed(dashboard, 0.6) == TEXT
    assert dashboard.connections >= 3


def test_the_rest_of_a_log_is_handed_on_once_the_job_has_ended() -> None:
    heard: list[str] = []
    dashboard: Any = BreakingDashboard([7])
    with JobLog(dashboard, "job", heard.append) as log:
        log.follow(0.2)
        assert "".join(heard) == TEXT[:7]
        log.finish()
    assert "".join(heard) == TEXT


def test_following_ends_in_time_and_inside_a_running_loop() -> None:
    async def in_a_notebook() -> str:
        return followed(BreakingDashboard([7]), 0.3)

    assert asyncio.run(in_a_notebook()) == TEXT[:7]


def test_without_a_listener_nothing_is_read() -> None:
    dashboard: Any = BreakingDashboard([len(TEXT)])
    with JobLog(dashboard, "job", None) as log:
        log.follow(0.1)
        log.finish()
    assert dashboard.connections == 0

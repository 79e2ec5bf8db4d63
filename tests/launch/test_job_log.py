"""A log over a connection that breaks: everything once, in order."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from rayline.launch.job_log import JobLog

TEXT = "one\ntwo\nthree\nfour\n"


class BreakingDashboard:
    """Sends the log from its beginning, and breaks off a little later on every connection."""

    def __init__(self, lengths: list[int]) -> None:
        self.lengths = lengths
        self.connections = 0

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        length = self.lengths[min(self.connections, len(self.lengths) - 1)]
        self.connections += 1
        for start in range(0, length, 3):
            await asyncio.sleep(0)
            yield TEXT[start : min(start + 3, length)]
        if length < len(TEXT):
            raise ConnectionResetError("broken")


def followed(dashboard: Any, seconds: float) -> tuple[str, bool]:
    heard: list[str] = []
    with JobLog(dashboard, "job", heard.append) as log:
        log.follow(seconds)
        return "".join(heard), log.complete


def test_nothing_is_lost_or_told_twice_when_the_line_breaks() -> None:
    dashboard = BreakingDashboard([5, 4, len(TEXT)])
    assert followed(dashboard, 10) == (TEXT, True)
    assert dashboard.connections == 3


def test_following_ends_in_time_and_inside_a_running_loop() -> None:
    async def in_a_notebook() -> tuple[str, bool]:
        return followed(BreakingDashboard([7]), 0.3)

    assert asyncio.run(in_a_notebook()) == (TEXT[:7], False)


def test_without_a_listener_nothing_is_read() -> None:
    dashboard: Any = BreakingDashboard([len(TEXT)])
    with JobLog(dashboard, "job", None) as log:
        log.follow(0.2)
        assert log.complete
    assert dashboard.connections == 0

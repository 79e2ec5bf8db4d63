"""Following a run from wherever its store can be read: what its driver records, as it comes.

A driver that lives shows it: every step, and every SAMPLE_S seconds a reading of its machine, end
in the store. Signs are compared by this process's own clock, so clocks of two machines need not
agree. A driver that was killed leaves a run that the store calls running for ever; it is known by
its silence.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from rayline.spec import TrackingSpec
from rayline.tracking.history import RunEvent, RunSummary, read_state
from rayline.tracking.recorder import FLUSH_S
from rayline.tracking.system import SAMPLE_S

SILENCE_S = 2 * SAMPLE_S + 2 * FLUSH_S
"""A driver that recorded nothing for so long is gone, or cannot reach its store."""
_POLL_S = 1.0


@dataclass(frozen=True, slots=True)
class RunNews:
    """What a run has come to since the last look."""

    summary: RunSummary
    last_step: int | None
    """The step that it is to end with; None where its params do not say."""
    events: list[RunEvent]
    """Those that were not told before."""
    silent_s: float
    """How long nothing at all was recorded, seconds of this process's clock."""


def follow_run(
    tracking: TrackingSpec,
    run_id: str,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[RunNews]:
    """Look at a run once a second, until it has ended or its driver was silent for SILENCE_S; the
    last news tells which. Raises SpecError where there is no such run."""
    told = 0
    sign: object = None
    heard_s = clock()
    while True:
        state = read_state(tracking, run_id)
        now_s = clock()
        if state.sign != sign:
            sign, heard_s = state.sign, now_s
        news = RunNews(state.summary, state.last_step, state.events[told:], now_s - heard_s)
        told = len(state.events)
        yield news
        if state.summary.status != "running" or news.silent_s >= SILENCE_S:
            return
        sleep(_POLL_S)


def driver_lives(
    tracking: TrackingSpec,
    run_id: str,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> bool:
    """Whether somebody still records this run: at once where it has ended, else within SILENCE_S.
    Raises SpecError where there is no such run."""
    for look, news in enumerate(follow_run(tracking, run_id, clock, sleep)):
        if news.summary.status != "running":
            return False
        # The first look has nothing to compare with.
        if look and news.silent_s == 0.0:
            return True
    return False

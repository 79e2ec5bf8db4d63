"""Rank 0 of a trial waits where trials are compared, and nowhere else; nothing of it is lost."""

from __future__ import annotations

import threading
import time
from pathlib import Path

from rayline.spec import StepReport
from rayline.tuning.figures import read_steps
from rayline.tuning.leavings import STEPS_FILE
from rayline.tuning.pacing import Pacing, let_go_on


def report(step: int) -> StepReport:
    return StepReport(
        step=step,
        loss=1.0,
        grad_norm=1.0,
        lr=1e-3,
        tokens=64,
        processed_tokens=64,
        seconds=1.0,
        memory_bytes=1,
    )


def goes() -> bool:
    return False


def test_a_step_that_nobody_compares_is_kept_and_passes(tmp_path: Path) -> None:
    pacing = Pacing(str(tmp_path), frozenset({3}))
    began_s = time.monotonic()
    for step in (1, 2):
        pacing(report(step), goes)
    assert time.monotonic() - began_s < 1
    assert [one.step for one in read_steps(tmp_path / STEPS_FILE)] == [1, 2]


def test_a_compared_step_waits_for_the_verdict(tmp_path: Path) -> None:
    pacing = Pacing(str(tmp_path), frozenset({3}))
    let_go_on(tmp_path, 2)
    rank = threading.Thread(target=pacing, args=(report(3), goes))
    rank.start()
    rank.join(0.2)
    assert rank.is_alive()
    let_go_on(tmp_path, 3)
    rank.join(2)
    assert not rank.is_alive()
    assert [one.step for one in read_steps(tmp_path / STEPS_FILE)] == [3]


def test_who_is_to_stop_waits_no_longer(tmp_path: Path) -> None:
    stop = threading.Event()
    pacing = Pacing(str(tmp_path), frozenset({3}))
    rank = threading.Thread(target=pacing, args=(report(3), stop.is_set))
    rank.start()
    stop.set()
    rank.join(2)
    assert not rank.is_alive()

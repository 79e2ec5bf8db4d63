"""The queue between training and the store: nothing is lost, nothing waits, nothing raises."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayline.tracking import recorder
from rayline.tracking import rows as kinds
from rayline.tracking.recorder import Recorder, pause_s
from rayline.tracking.rows import FileRow, MetricRow, Row, TagRow, from_line, next_batch, to_line
from rayline.tracking.spool import Description, Spool

rows_of_both_kinds = st.lists(
    st.one_of(
        st.builds(MetricRow, st.just("loss"), st.floats(), st.just(0), st.integers(0, 9)),
        st.builds(TagRow, st.text(max_size=3), st.just("x")),
        st.builds(FileRow, st.text(max_size=3), st.none()),
    ),
    max_size=400,
)


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "tracking" / "one", Description("one", "http://x", "tests", "job", 0))


@given(rows_of_both_kinds)
def test_a_row_is_one_line_and_comes_back(rows: list[Row]) -> None:
    for row in rows:
        line = to_line(row)
        assert "\n" not in line
        assert repr(from_line(line)) == repr(row)


def metric(step: int) -> MetricRow:
    return MetricRow("loss", 1.0, 0, step)


@given(rows_of_both_kinds)
def test_batches_keep_the_order_and_the_limits(rows: list[Row]) -> None:
    left, sent = list(rows), []
    while left:
        batch = next_batch(left)
        assert batch
        assert len(batch) <= kinds.BATCH_ROWS
        assert sum(isinstance(row, TagRow) for row in batch) <= kinds.BATCH_TAGS
        assert len(batch) == 1 or not any(isinstance(row, FileRow) for row in batch)
        sent += batch
        left = left[len(batch) :]
    assert [id(row) for row in sent] == [id(row) for row in rows]


@given(st.integers(0, 100))
def test_pauses_grow_and_stay_bounded(failures: int) -> None:
    assert recorder.FLUSH_S <= pause_s(failures) <= pause_s(failures + 1)
    assert pause_s(failures) <= recorder.LONGEST_PAUSE_S


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


def test_rows_refused_once_arrive_in_order_at_the_end(spool: Spool) -> None:
    arrived: list[Row] = []
    refusals = [ConnectionError("gone")]

    def send(rows: Sequence[Row]) -> None:
        if refusals:
            raise refusals.pop()
        arrived.extend(rows)

    queue = Recorder(spool, send, sample=list, sample_s=60.0)
    rows = [metric(step) for step in range(recorder.FLUSH_ROWS + 1)]
    queue.add(rows[:-1])
    wait_for(lambda: queue.last_error is not None)
    assert arrived == []
    queue.add(rows[-1:])
    assert queue.close(lambda: None, 10.0)
    assert arrived == rows
    assert queue.unsent == 0


def test_rows_that_are_never_taken_are_counted(spool: Spool) -> None:
    closed: list[bool] = []

    def send(rows: Sequence[Row]) -> None:
        raise ConnectionError("gone")

    queue = Recorder(spool, send, sample=list, sample_s=60.0)
    queue.add(metric(step) for step in range(7))
    assert not queue.close(lambda: closed.append(True), 10.0)
    assert queue.unsent == 7
    assert closed == []


def test_a_store_that_hangs_does_not_hold_the_caller(spool: Spool) -> None:
    release = threading.Event()

    def send(rows: Sequence[Row]) -> None:
        release.wait(30)

    queue = Recorder(spool, send, sample=list, sample_s=60.0)
    began = time.monotonic()
    queue.add(metric(step) for step in range(5000))
    assert not queue.close(lambda: None, 0.5)
    assert time.monotonic() - began < 5
    assert queue.unsent == 5000
    release.set()


def test_samples_come_at_the_start_and_at_the_end(spool: Spool) -> None:
    arrived: list[Row] = []
    queue = Recorder(spool, arrived.extend, sample=lambda: [metric(1)], sample_s=60.0)
    assert queue.close(lambda: None, 10.0)
    assert len(arrived) == 2

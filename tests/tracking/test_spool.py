"""The rows that wait: in order, once each, whatever ends the process that wrote them."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayline.tracking import spool as spools
from rayline.tracking.rows import FileRow, MetricRow, Row, TagRow
from rayline.tracking.spool import Description, Ending, Spool, left_behind

ABOUT = Description("key", "http://127.0.0.1:1", "tests", "job", 7, tags={"a": "b"})


def metric(step: int) -> MetricRow:
    return MetricRow("loss", 1 / (step + 1), 0, step)


def drained(spool: Spool) -> list[Row]:
    got: list[Row] = []
    while spool.unsent:
        batch = spool.head()
        assert batch
        got += batch
        spool.drop(len(batch))
    return got


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 3)), max_size=12), st.booleans())
def test_rows_come_out_once_and_in_order_across_files_and_processes(
    moves: list[tuple[int, int]], small: bool
) -> None:
    kept = spools.SEGMENT_BYTES
    spools.SEGMENT_BYTES = 200 if small else kept
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "tracking" / "key"
            spool = Spool(folder, ABOUT)
            given_rows: list[Row] = []
            got: list[Row] = []
            for count, sends in moves:
                rows = [metric(len(given_rows) + place) for place in range(count)]
                spool.append(rows)
                given_rows += rows
                for _ in range(sends):
                    batch = spool.head()
                    got += batch
                    spool.drop(len(batch))
                assert spool.unsent == len(given_rows) - len(got)
            spool.close()
            again = Spool.reopen(folder)
            assert again is not None
            assert again.unsent == len(given_rows) - len(got)
            assert got + drained(again) == given_rows
            again.remove()
            assert not folder.parent.exists()
    finally:
        spools.SEGMENT_BYTES = kept


def test_files_that_were_sent_give_the_disk_back(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "tracking" / "key", ABOUT)
    kept = spools.SEGMENT_BYTES
    spools.SEGMENT_BYTES = 1000
    try:
        for step in range(500):
            spool.append([metric(step)])
    finally:
        spools.SEGMENT_BYTES = kept
    before = len(list(spool.folder.glob("rows-*")))
    assert before > 10
    drained(spool)
    assert len(list(spool.folder.glob("rows-*"))) == 1


def test_a_line_that_was_torn_by_the_end_is_left_out(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "tracking" / "key", ABOUT)
    spool.append([metric(1), metric(2)])
    spool.end(Ending("FINISHED", 9))
    spool.close()
    with (spool.folder / "rows-00000.jsonl").open("ab") as stream:
        stream.write(b'["metric","loss",0.2')
    again = Spool.reopen(spool.folder)
    assert again is not None
    assert again.unsent == 2
    assert drained(again) == [metric(1), metric(2)]
    assert again.description.ending == Ending("FINISHED", 9)
    assert again.description.tags == {"a": "b"}


def test_who_lives_keeps_the_spool_and_who_was_killed_leaves_it(tmp_path: Path) -> None:
    folder = tmp_path / "tracking" / "key"
    code = f"""
import os, signal
from pathlib import Path
from rayline.tracking.rows import MetricRow
from rayline.tracking.spool import Description, Spool
spool = Spool(Path({str(folder)!r}), Description("key", "http://x", "tests", "job", 7))
spool.append([MetricRow("loss", 0.5, 0, step) for step in range(30)])
print("written", flush=True)
input()
os.kill(os.getpid(), signal.SIGKILL)
"""
    writer = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert writer.stdout is not None
    assert writer.stdin is not None
    try:
        assert writer.stdout.readline() == b"written\n"
        assert Spool.reopen(folder) is None
        writer.stdin.write(b"\n")
        writer.stdin.flush()
        assert writer.wait(30) < 0
    finally:
        writer.kill()
        writer.wait()
    assert list(left_behind(tmp_path)) == [folder]
    again = Spool.reopen(folder)
    assert again is not None
    assert len(drained(again)) == 30


def test_where_no_disk_takes_them_rows_wait_in_memory(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "tracking").write_text("a file, where a folder is wanted")
    spool = Spool(tmp_path / "tracking" / "key", ABOUT)
    rows: list[Row] = [metric(1), TagRow("a", "b"), FileRow("x", None), metric(2)]
    spool.append(rows)
    assert not spool.on_disk
    assert drained(spool) == rows
    assert caplog.text.count("is lost if this process ends") == 1


def test_copies_stay_until_they_are_forgotten(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "tracking" / "key", ABOUT)
    (tmp_path / "best.yaml").write_text("steps: 3")
    (tmp_path / "plots").mkdir()
    (tmp_path / "plots" / "loss.html").write_text("<svg>")
    file = spool.keep_file(tmp_path / "best.yaml")
    folder = spool.keep_file(tmp_path / "plots")
    text = spool.keep_text("{}", "memory.json")
    (tmp_path / "best.yaml").write_text("changed")
    assert file.read_text() == "steps: 3"
    assert (folder / "loss.html").read_text() == "<svg>"
    assert text.read_text() == "{}"
    for copy in (file, folder, text):
        spool.forget_file(copy)
        assert not copy.exists()
    spool.forget_file(tmp_path / "best.yaml")
    assert (tmp_path / "best.yaml").exists()


def test_only_its_owner_may_read_what_waits(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "tracking" / "key", ABOUT)
    spool.append([metric(1)])
    for file in (spool.folder / "run.json", spool.folder / "rows-00000.jsonl"):
        assert file.stat().st_mode & 0o077 == 0

"""What this machine remembers of a cluster, and whom it takes for its head."""

import os
from pathlib import Path

import psutil
import pytest

from rayline.errors import PlacementError
from rayline.launch.clusters import made_up_cluster
from rayline.launch.clusters.state import HeadRecord, folder_of, remembered


def record(pid: int, created_s: float) -> HeadRecord:
    return HeadRecord(pid, created_s, "mark", "127.0.0.1:1", "http://127.0.0.1:2", "none", "f")


def test_what_is_kept_is_what_is_read(tmp_path: Path) -> None:
    folder = folder_of("a", tmp_path)
    assert folder.read() is None
    folder.write(record(1, 2.5))
    assert folder.read() == record(1, 2.5)
    folder.write_file("x: 1\n")
    assert remembered(tmp_path) == [folder]
    folder.forget()
    assert remembered(tmp_path) == []
    assert folder.read() is None
    assert not folder.file.exists()


def test_a_torn_record_is_said(tmp_path: Path) -> None:
    folder = folder_of("a", tmp_path)
    folder.write(record(1, 2.5))
    (folder.path / "head.json").write_text('{"pid": 1}')
    with pytest.raises(PlacementError, match="not readable"):
        folder.read()


def test_a_process_that_got_the_heads_number_later_is_not_the_head(tmp_path: Path) -> None:
    folder = folder_of("a", tmp_path)
    born_s = psutil.Process().create_time()
    folder.write(record(os.getpid(), born_s - 60.0))
    found = made_up_cluster.status(folder)
    assert found is not None
    assert not found.running
    # Nor is it ended: only processes that bear the mark are.
    assert made_up_cluster.end(folder) == 0
    assert folder.read() is None


def test_free_ports_differ() -> None:
    assert len(set(made_up_cluster.free_ports(20))) == 20

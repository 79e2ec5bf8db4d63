"""A checkpoint that becomes another job's own."""

from __future__ import annotations

from pathlib import Path

from rayline.tuning.leavings import read_ended, write_ended
from rayline.tuning.taking_over import take_over


def checkpoint(folder: Path) -> Path:
    (folder / "shards").mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")
    (folder / "shards" / "0.safetensors").write_bytes(b"weights")
    return folder


def test_it_is_there_as_it_was(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "a" / "step-00000003")
    take_over(str(source), str(tmp_path / "b"))
    copied = tmp_path / "b" / "step-00000003"
    assert (copied / "shards" / "0.safetensors").read_bytes() == b"weights"
    assert [one.name for one in (tmp_path / "b").iterdir()] == ["step-00000003"]
    # Whoever prunes one of the two leaves the other.
    (source / "shards" / "0.safetensors").unlink()
    assert (copied / "shards" / "0.safetensors").read_bytes() == b"weights"


def test_what_a_job_has_itself_is_newer(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "a" / "step-00000003")
    own = checkpoint(tmp_path / "b" / "step-00000005")
    take_over(str(source), str(own.parent))
    assert [one.name for one in own.parent.iterdir()] == ["step-00000005"]


def test_what_was_broken_off_is_begun_anew(tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "a" / "step-00000003")
    part = tmp_path / "b" / ".step-00000003.part"
    part.mkdir(parents=True)
    (part / "half").write_text("")
    take_over(str(source), str(tmp_path / "b"))
    assert [one.name for one in (tmp_path / "b").iterdir()] == ["step-00000003"]
    assert not (tmp_path / "b" / "step-00000003" / "half").exists()


def test_an_end_is_told_whole_or_not_at_all(tmp_path: Path) -> None:
    assert read_ended(tmp_path, 2) is None
    write_ended(tmp_path, 2, {"ending": "paused", "run_id": "r", "checkpoint": None})
    assert read_ended(tmp_path, 2) == {"ending": "paused", "run_id": "r", "checkpoint": None}
    assert read_ended(tmp_path, 1) is None
    assert len(list(tmp_path.iterdir())) == 1

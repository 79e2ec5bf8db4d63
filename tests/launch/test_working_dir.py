"""What travels with a job: Ray's own rules, the size, the names of the largest."""

import random
from pathlib import Path

import pytest

from rayline.errors import SpecError
from rayline.launch.working_dir import refuse_too_large, travelling_files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / ".gitignore").write_text("runs/\n*.log\n")
    (tmp_path / ".rayignore").write_text("private.txt\n")
    (tmp_path / "runs").mkdir()
    (tmp_path / "sub").mkdir()
    (tmp_path / ".venv").mkdir()
    drawn = random.Random(0)
    for name, size_bytes in {
        "spec.yaml": 10,
        "private.txt": 5000,
        "a.log": 5000,
        "runs/weights.bin": 90000,
        ".venv/python": 90000,
        "sub/noise.bin": 60000,
    }.items():
        (tmp_path / name).write_bytes(drawn.randbytes(size_bytes))
    (tmp_path / "zeros.bin").write_bytes(bytes(80000))
    return tmp_path


def test_ignored_files_stay_and_the_largest_come_first(folder: Path) -> None:
    names = [str(file.path) for file in travelling_files(folder)]
    assert names[:2] == ["zeros.bin", "sub/noise.bin"]
    assert set(names) == {"zeros.bin", "sub/noise.bin", "spec.yaml", ".gitignore", ".rayignore"}


def test_too_much_is_refused_with_the_largest_named(folder: Path) -> None:
    with pytest.raises(SpecError) as refused:
        refuse_too_large(folder, limit_bytes=50000)
    assert refused.value.subject == "working_dir"
    assert "zeros.bin 0.1 MiB, sub/noise.bin 0.1 MiB" in refused.value.problem
    assert ".rayignore" in refused.value.fix


def test_what_packs_well_may_travel(folder: Path) -> None:
    # 140,000 bytes lie there, but the zeros pack to nothing.
    size_bytes = refuse_too_large(folder, limit_bytes=100000)
    assert size_bytes > 140000

"""What travels with a job: Ray's own rules, the size, the names of the largest."""

import io
import logging
import random
import zipfile
from pathlib import Path

import pytest

from rayline.errors import SpecError
from rayline.launch.working_dir import packed, refuse_too_large, travelling_files


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


def by_ray(root: Path) -> set[str]:
    """What Ray's own walk finds; it has no public form."""
    from ray._private.ray_constants import get_runtime_env_default_excludes
    from ray._private.runtime_env.packaging import _dir_travel, _get_excludes

    found: set[str] = set()

    def note(path: Path) -> None:
        if path.is_file():
            found.add(str(path.relative_to(root)))

    excludes = [_get_excludes(root, get_runtime_env_default_excludes())]
    quiet = logging.getLogger("quiet")
    quiet.setLevel(logging.WARNING)
    _dir_travel(root, excludes, note, include_gitignore=True, logger=quiet)
    return found


PATTERNS = ["*.bin", "/top", "sub/", "!keep.bin", "**/deep/*.txt", "a?c", "# nothing", "[xy].txt"]


def test_what_travels_is_what_ray_would_send(tmp_path: Path) -> None:
    drawn = random.Random(3)
    for number in range(12):
        root = tmp_path / str(number)
        for name in (
            "top",
            "x.txt",
            "keep.bin",
            "n.bin",
            "abc",
            "sub/one",
            "q/deep/x.txt",
            "q/top",
        ):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(name)
        for place in ("", "q", "sub"):
            for file in (".gitignore", ".rayignore"):
                if drawn.random() < 0.6:
                    lines = drawn.sample(PATTERNS, drawn.randint(1, 3))
                    (root / place / file).write_text("\n".join(lines))
        assert {str(file.path) for file in travelling_files(root)} == by_ray(root)


def test_a_package_holds_what_travels_and_is_named_by_its_content(folder: Path) -> None:
    name, content = packed(folder)
    with zipfile.ZipFile(io.BytesIO(content)) as package:
        names = set(package.namelist())
        assert package.read("spec.yaml") == (folder / "spec.yaml").read_bytes()
    assert names == {str(file.path) for file in travelling_files(folder)}
    assert len(content) < 90000, "zeros are packed"
    assert packed(folder)[0] == name
    (folder / "spec.yaml").write_text("other")
    assert packed(folder)[0] != name

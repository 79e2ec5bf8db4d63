"""A process in which only the thin core is installed: everything that `pip install rayline` alone
would not bring cannot be imported there."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement

REPOSITORY = Path(__file__).resolve().parents[2]
_BLOCKING = """
import json, os, sys
allowed = set(json.loads(os.environ["THIN_ALLOWED"])) | set(sys.stdlib_module_names) | {"rayline"}

class Missing:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in allowed and not top.startswith("_"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
"""
_LINES = """
from rayline.cli import run
codes = [run(words) for words in json.loads(sys.argv[1])]
sys.stdout.flush()
print("codes", *codes)
"""


def core_modules() -> set[str]:
    """What can be imported where the core's dependencies, and theirs, are installed."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    left, distributions = list(project["dependencies"]), set()
    while left:
        requirement = Requirement(left.pop())
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        wanted = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if not wanted or name in distributions:
            continue
        distributions.add(name)
        left += importlib.metadata.requires(name) or []
    return {
        module
        for module, owners in importlib.metadata.packages_distributions().items()
        if any(re.sub(r"[-_.]+", "-", owner).lower() in distributions for owner in owners)
    }


def run_thin(
    lines: list[list[str]], folder: Path, script: str = _LINES
) -> subprocess.CompletedProcess[str]:
    """Run command lines one after another in such a process, in `folder`. The last line that it
    prints is `codes` with their exit codes."""
    return subprocess.run(
        [sys.executable, "-c", _BLOCKING + script, json.dumps(lines)],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(REPOSITORY / "platform"),
            "THIN_ALLOWED": json.dumps(sorted(core_modules())),
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )

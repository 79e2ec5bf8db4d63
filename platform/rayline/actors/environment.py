"""Where the workers' processes import rayline from: the same place as the driver."""

from __future__ import annotations

import os
import site
from collections.abc import Iterable
from pathlib import Path

import rayline


def workers_environment() -> dict[str, str]:
    """What a worker's process needs so that it imports the same rayline as this one.

    Nothing where it is installed. From a checkout, or a working directory that a submitted job
    brought along, its folder is put on the path; Ray unpacks it to the same place on every node.
    """
    source = Path(rayline.__file__).parents[1]
    if source in installed_roots(site.getsitepackages()):
        return {}
    known = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    paths = [str(source), *(path for path in known if path and path != str(source))]
    return {"PYTHONPATH": os.pathsep.join(paths)}


def installed_roots(site_folders: Iterable[str]) -> set[Path]:
    """Folders that any Python of this environment imports from: site-packages, and what editable
    installs name in its .pth files."""
    roots = {Path(folder) for folder in site_folders}
    for folder in list(roots):
        for listing in folder.glob("*.pth"):
            lines = listing.read_text(encoding="utf-8", errors="ignore").splitlines()
            roots |= {Path(line) for line in lines if line.startswith(os.sep)}
    return roots

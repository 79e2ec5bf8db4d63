"""Which code ran: the version of the package, and the git commit where it runs from a checkout."""

from __future__ import annotations

import getpass
import importlib.metadata
import platform
import sys
from pathlib import Path

from rayline.tracking.project import git


def code_tags() -> dict[str, str]:
    """Tags of a run that say which code ran, where and for whom; MLflow's own names where it has
    one (it shows them on its page)."""
    here = Path(__file__).resolve()
    tags = {
        "mlflow.source.name": Path(sys.argv[0]).name or "python",
        "mlflow.source.type": "LOCAL",
        "rayline.host": platform.node(),
        "rayline.python": platform.python_version(),
        "rayline.version": _package_version(),
    }
    try:
        tags["mlflow.user"] = getpass.getuser()
    except (OSError, KeyError):
        tags["mlflow.user"] = "unknown"
    # A package installed into somebody's project must not claim that project's commit.
    if git(here.parent, "ls-files", "--error-unmatch", here.name) is not None:
        commit = git(here.parent, "rev-parse", "HEAD")
        changes = git(here.parent, "status", "--porcelain", "--untracked-files=no")
        if commit:
            tags["mlflow.source.git.commit"] = commit
            tags["rayline.git_dirty"] = str(bool(changes)).lower()
    return tags


def _package_version() -> str:
    try:
        return importlib.metadata.version("rayline")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"

"""Which code ran: the version of the package, and the git commit where it runs from a checkout."""

from __future__ import annotations

import getpass
import importlib.metadata
import platform
import subprocess
import sys
from pathlib import Path

_GIT_TIMEOUT_S = 5.0


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
    if _git(here.parent, "ls-files", "--error-unmatch", here.name) is not None:
        commit = _git(here.parent, "rev-parse", "HEAD")
        changes = _git(here.parent, "status", "--porcelain", "--untracked-files=no")
        if commit:
            tags["mlflow.source.git.commit"] = commit
            tags["rayline.git_dirty"] = str(bool(changes)).lower()
    return tags


def _package_version() -> str:
    try:
        return importlib.metadata.version("rayline")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints, without the line's end; None where it fails or is absent."""
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=_GIT_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None

"""The code that a run was started from: git's state of the folder that the driver stands in, and
the packages that are installed."""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

GIT_TIMEOUT_S = 5.0
_NAME = re.compile(r"^Name:(.*)$", re.MULTILINE)
_VERSION = re.compile(r"^Version:(.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class GitState:
    """What a folder under git holds."""

    root: str
    commit: str
    branch: str
    """Empty where no branch is checked out."""
    dirty: bool
    """Whether files that git follows were changed, or there are some that it does not follow."""
    diff_sha256: str
    """Of `git diff HEAD --binary`; empty where git followed all of it."""


@dataclass(frozen=True, slots=True)
class Packages:
    """Everything that is installed in this environment."""

    lines: tuple[str, ...]
    """name==version, sorted, each once."""

    @property
    def sha256(self) -> str:
        """Of the lines: equal for equal environments."""
        return hashlib.sha256("\n".join(self.lines).encode()).hexdigest()


def git_state(folder: Path) -> GitState | None:
    """The state of the repository around `folder`; None where there is none, or git is absent or
    takes more than GIT_TIMEOUT_S."""
    root = git(folder, "rev-parse", "--show-toplevel")
    commit = git(folder, "rev-parse", "HEAD")
    if root is None or commit is None:
        return None
    branch = git(folder, "branch", "--show-current") or ""
    changed = git(folder, "status", "--porcelain")
    diff = git(folder, "diff", "HEAD", "--binary")
    digest = hashlib.sha256(diff.encode()).hexdigest() if diff else ""
    return GitState(root, commit, branch, bool(changed), digest)


def installed_packages() -> Packages:
    """Read from the environment's metadata."""
    found = set()
    for entry in importlib.metadata.distributions():
        # Python's own reader parses the whole of it, the descriptions too: ten times as long.
        text = entry.read_text("METADATA") or entry.read_text("PKG-INFO") or ""
        name, version = _NAME.search(text), _VERSION.search(text)
        if name is not None and version is not None:
            found.add(f"{name[1].strip()}=={version[1].strip()}")
    return Packages(tuple(sorted(found, key=str.lower)))


def git(folder: Path, *arguments: str) -> str | None:
    """What git prints, without the line's end; None where it fails or is absent."""
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=folder,
            capture_output=True,
            timeout=GIT_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    if done.returncode != 0:
        return None
    return done.stdout.decode("utf-8", "surrogateescape").strip()

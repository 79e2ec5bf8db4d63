"""The fence of a folder of checkpoints: whose turn it is to write there.

A driver claims the folder when it begins to write; the newest claim holds. A commit looks at the
fence right before it renames or writes the manifest, so a driver that was cut off and comes back
cannot put its state over that of the one that took over. (Between the look and the commit lies a
moment that only storage with locks could close; what could slip through is one checkpoint that is
whole in itself.)
"""

from __future__ import annotations

import secrets

from rayline.checkpoint.location import (
    STORAGE_FAULTS,
    Location,
    make_folder,
    overwrite,
    read_all,
    remove_file,
)
from rayline.errors import CheckpointError

_FENCE = "fence"


def claim(root: Location) -> str:
    """Make the folder this driver's; returns its claim. Raises OSError, or CheckpointError behind
    an address."""
    make_folder(root)
    mine = secrets.token_hex(16)
    overwrite(root / _FENCE, mine.encode())
    return mine


def holds(root: Location, mine: str) -> bool:
    """Whether the claim `mine` is still the newest. Raises CheckpointError where storage behind an
    address cannot tell."""
    try:
        return read_all(root / _FENCE) == mine.encode()
    except OSError:
        return False


def check_access(root: Location) -> None:
    """Write, read and remove a small file below `root`, before anything depends on it. Raises
    CheckpointError naming checkpoint.directory."""
    file = root / f"access.{secrets.token_hex(8)}"
    try:
        make_folder(root)
        overwrite(file, b"rayline")
        there = read_all(file)
        remove_file(file)
    except STORAGE_FAULTS as wrong:
        said = wrong.problem if isinstance(wrong, CheckpointError) else str(wrong)
        if isinstance(wrong, FileNotFoundError):
            said = "there is no such bucket or folder"
        raise CheckpointError(
            "checkpoint.directory",
            f"cannot be written and read: {said}",
            value=str(root),
            fix="give the workers access to it: its endpoint and credentials in their environment, "
            "the package that fsspec has for it, or another directory",
        ) from None
    if there != b"rayline":
        raise CheckpointError(
            "checkpoint.directory", "does not give back what was written there", value=str(root)
        )

"""The fence of a folder of checkpoints: whose turn it is to write there.

A driver claims the folder when it begins to write; the newest claim holds. A commit looks at the
fence right before it renames, so a driver that was cut off and comes back cannot put its state
over that of the one that took over. (Between the look and the rename lies a moment that only
storage with locks could close; what could slip through is one checkpoint that is whole in itself.)
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

_FENCE = "fence"


def claim(root: Path) -> str:
    """Make the folder this driver's; returns its claim. Raises OSError."""
    root.mkdir(parents=True, exist_ok=True)
    mine = secrets.token_hex(16)
    fresh = root / f"{_FENCE}.{mine}"
    with fresh.open("x") as file:
        file.write(mine)
        file.flush()
        os.fsync(file.fileno())
    fresh.rename(root / _FENCE)
    return mine


def holds(root: Path, mine: str) -> bool:
    """Whether the claim `mine` is still the newest."""
    try:
        return (root / _FENCE).read_text() == mine
    except OSError:
        return False

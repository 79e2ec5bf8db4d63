"""One thing that the doctor looked at, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    name: str
    level: Level
    """error: something will fail; warning: something may, or is slower than it could be."""
    text: str
    """What was found."""
    fix: str = ""
    """What to do; empty where nothing needs to be done."""

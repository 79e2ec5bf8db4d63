"""What a trial leaves in its folder, for whoever looks later: its process writes, drivers read."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

STEPS_FILE = "steps.jsonl"
"""Every step that was done, StepFigures a line; what was done again stands there again."""
STOPPED_FILE = "stopped"
"""Of a trial that will never go on: its checkpoints serve nobody."""


def write_ended(folder: Path, segment: int, end: dict[str, Any]) -> None:
    """Say how a gang came to its end, whole or not at all."""
    file = _ended_file(folder, segment)
    beside = file.with_suffix(".part")
    beside.write_text(json.dumps(end), encoding="utf-8")
    os.replace(beside, file)


def read_ended(folder: Path, segment: int) -> dict[str, Any] | None:
    """What `write_ended` said; None where that gang did not come to its end."""
    file = _ended_file(folder, segment)
    if not file.exists():
        return None
    end: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return end


def generation_folder(folder: str, segment: int) -> str:
    """Where the checkpoints of a generation of a population lie."""
    return f"{folder}/generation-{segment:03d}"


def drop_generation(folder: Path, segment: int) -> None:
    """Remove the checkpoints of a generation that nobody goes on from any more."""
    shutil.rmtree(generation_folder(str(folder), segment), ignore_errors=True)


def _ended_file(folder: Path, segment: int) -> Path:
    return folder / f"ended-{segment:03d}.json"

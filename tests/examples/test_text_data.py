"""The bundled text is what its script writes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

DATA = Path(__file__).parents[2] / "examples" / "data"


def test_the_stories_are_those_of_the_script() -> None:
    made = subprocess.run(
        [sys.executable, DATA / "make_text.py"], capture_output=True, text=True, check=True
    ).stdout
    assert made == (DATA / "text.jsonl").read_text(encoding="utf-8")
    assert len(set(made.splitlines())) > 300

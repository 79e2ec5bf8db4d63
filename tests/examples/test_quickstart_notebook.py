"""The notebook runs from top to bottom: two workers train, vLLM serves, the answer is right."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from support.notebooks import run_notebook


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short name: Ray puts sockets below it, whose paths may have 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="nb-") as name:
        yield Path(name)


@pytest.mark.serve
@pytest.mark.timeout(400)
def test_it_runs_from_top_to_bottom(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("TMPDIR", str(folder))
    shown = run_notebook("quickstart.ipynb", folder, timeout_s=300)
    assert "registry:otto@latest: logits differ by" in shown
    assert "notebook finished 60" in shown
    # The loss was drawn while it trained, and the plan as a picture.
    assert "notebook: step 60/60, loss " in shown
    assert "<polyline" in shown
    assert "'Otto the heron.'" in shown
    _, alive = psutil.wait_procs(psutil.Process().children(recursive=True), timeout=20)
    assert alive == []

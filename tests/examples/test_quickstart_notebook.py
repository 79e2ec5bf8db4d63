"""The notebook runs from top to bottom: two workers train, vLLM serves, the answer is right."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import nbformat
import psutil
import pytest

from support.notebooks import run_notebook

# Usage and deployments are written beside what they tell of, within seconds.
UNTIL_IT_IS_WRITTEN = """
import time

until_s = time.monotonic() + 60
while not client.lineage("otto@latest").of_kind("usage") and time.monotonic() < until_s:
    time.sleep(0.5)
"""
RESOLVED = """
from rayline.tracking.store import connect
from support.lineage import resolves

found = client.lineage("otto@latest")
kinds = ["data", "run", "checkpoint", "model", "deployment", "usage"]
assert [kind for kind in kinds if found.of_kind(kind)] == kinds, found
for node in found.nodes:
    assert node.kind == "usage" or resolves(connect(tracking), node.address), node
print("every hop resolves")
"""


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

    def put(cells: list[nbformat.NotebookNode]) -> None:
        ask = next(place for place, cell in enumerate(cells) if "lineage(" in cell.source)
        cells.insert(ask, nbformat.v4.new_code_cell(UNTIL_IT_IS_WRITTEN))
        cells.insert(ask + 2, nbformat.v4.new_code_cell(RESOLVED))

    shown = run_notebook("quickstart.ipynb", folder, timeout_s=300, put=put)
    assert "registry:otto@latest: logits differ by" in shown
    assert "notebook finished 60" in shown
    # The loss was drawn while it trained, and the plan as a picture.
    assert "notebook: step 60/60, loss " in shown
    assert "<polyline" in shown
    assert "'Otto the heron.'" in shown
    assert "every hop resolves" in shown
    _, alive = psutil.wait_procs(psutil.Process().children(recursive=True), timeout=20)
    assert alive == []

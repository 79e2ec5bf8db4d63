"""The notebook runs from top to bottom: two workers train, vLLM serves, the answer is right."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import nbformat
import psutil
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parents[2] / "examples" / "quickstart.ipynb"


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


def test_it_is_kept_without_outputs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code
    assert all(not cell.outputs and cell.execution_count is None for cell in code)


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
    paths = [str(NOTEBOOK.parents[1] / name) for name in ("platform", "tests")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    ask = next(place for place, cell in enumerate(notebook.cells) if "lineage(" in cell.source)
    notebook.cells.insert(ask, nbformat.v4.new_code_cell(UNTIL_IT_IS_WRITTEN))
    notebook.cells.insert(ask + 2, nbformat.v4.new_code_cell(RESOLVED))
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute(
        env=dict(os.environ)
    )
    shown = outputs(notebook)
    assert "registry:otto@latest: logits differ by" in shown
    assert "notebook finished 60" in shown
    assert "'Otto the heron.'" in shown
    assert "every hop resolves" in shown
    _, alive = psutil.wait_procs(psutil.Process().children(recursive=True), timeout=20)
    assert alive == []


def outputs(notebook: nbformat.NotebookNode) -> str:
    """Everything that the cells printed or ended with."""
    texts = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            texts.append(output.get("text") or output.get("data", {}).get("text/plain", ""))
    return "\n".join(texts)

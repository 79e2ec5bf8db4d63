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
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parents[1] / "platform"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute(
        env=dict(os.environ)
    )
    shown = outputs(notebook)
    assert "registry:otto@latest: logits differ by" in shown
    assert "notebook finished 60" in shown
    assert "'Otto the heron.'" in shown
    _, alive = psutil.wait_procs(psutil.Process().children(recursive=True), timeout=20)
    assert alive == []


def outputs(notebook: nbformat.NotebookNode) -> str:
    """Everything that the cells printed or ended with."""
    texts = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            texts.append(output.get("text") or output.get("data", {}).get("text/plain", ""))
    return "\n".join(texts)

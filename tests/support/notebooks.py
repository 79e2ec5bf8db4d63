"""A notebook of examples/ run from top to bottom in a kernel of its own."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import nbformat
from nbclient import NotebookClient

REPOSITORY = Path(__file__).resolve().parents[2]
EXAMPLES = REPOSITORY / "examples"


def run_notebook(
    name: str,
    folder: Path,
    timeout_s: int = 120,
    put: Callable[[list[nbformat.NotebookNode]], None] = lambda cells: None,
    **environment: str,
) -> str:
    """Run examples/NAME in `folder`; everything that its cells printed or ended with, HTML too. A
    cell that raises fails. `put` puts cells of the test between the notebook's."""
    notebook = nbformat.read(EXAMPLES / name, as_version=4)
    put(notebook.cells)
    paths = [str(REPOSITORY / part) for part in ("platform", "tests")]
    NotebookClient(
        notebook, timeout=timeout_s, resources={"metadata": {"path": str(folder)}}
    ).execute(
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), **environment},
    )
    return outputs(notebook)


def outputs(notebook: nbformat.NotebookNode) -> str:
    """Everything that the cells printed or ended with."""
    texts = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            texts += [output.get("text", ""), data.get("text/plain", ""), data.get("text/html", "")]
    return "\n".join(text for text in texts if text)

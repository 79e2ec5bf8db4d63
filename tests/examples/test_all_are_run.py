"""Nothing lies in examples/ that no test executes."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
RUN_BY = {
    "canary.py": "test_serving_door.py",
    "cluster.ipynb": "test_cluster_door.py",
    "finetune_and_deploy.py": "test_serving_door.py",
    "http.ipynb": "test_serving_door.py",
    "job.ipynb": "test_cluster_door.py",
    "pretrain_from_scratch.py": "test_training_scripts.py",
    "quickstart.ipynb": "test_quickstart_notebook.py",
    "search.py": "test_training_scripts.py",
}
"""Each notebook and script, and the test of this folder that runs it. Benchmarks are run by `make
bench`, and data/make_text.py by test_text_data.py."""
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))


def test_every_notebook_and_script_is_run_by_a_test() -> None:
    found = {path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")}
    assert found == set(RUN_BY)
    for name, file in RUN_BY.items():
        text = (Path(__file__).parent / file).read_text()
        stem = re.escape(Path(name).stem)
        assert re.search(rf'"{stem}(\.ipynb|\.py)?"', text), f"{file} does not run {name}"


def test_the_readme_names_each_of_them() -> None:
    text = (EXAMPLES / "README.md").read_text()
    assert [name for name in RUN_BY if f"({name})" not in text] == []


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_notebooks_are_kept_without_outputs(notebook: Path) -> None:
    code = [
        cell for cell in nbformat.read(notebook, as_version=4).cells if "execution_count" in cell
    ]
    assert code
    assert all(not cell.outputs and cell.execution_count is None for cell in code)


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_a_script_is_short_and_says_how_it_is_run(script: Path) -> None:
    text = script.read_text()
    assert f"    python examples/{script.name}  " in text
    assert len(text.splitlines()) < 200

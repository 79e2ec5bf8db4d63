"""Every spec in jobs/specs is complete, says how to run it, and its plan suits its model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rayline.planner import read_model_shape
from rayline.spec import JobSpec, ModelShape

REPOSITORY = Path(__file__).resolve().parents[2]
SPECS = sorted((REPOSITORY / "jobs" / "specs").glob("*.yaml"))
SHAPES = {
    "directory:examples/models/tiny": read_model_shape(REPOSITORY / "examples" / "models" / "tiny"),
    "directory:.rayline/demo/model": ModelShape(
        layers=30, hidden=576, heads=9, kv_heads=3, head_dim=64, ffn=1536, vocab=49152,
        tied_embeddings=True, max_positions=8192,
    ),
    "hub:meta-llama/Llama-3.1-8B-Instruct": ModelShape(
        layers=32, hidden=4096, heads=32, kv_heads=8, head_dim=128, ffn=14336, vocab=128256,
        tied_embeddings=False, max_positions=131072,
    ),
}  # fmt: skip
"""What each model's config.json says."""


@pytest.mark.parametrize("file", SPECS, ids=lambda file: file.stem)
def test_a_spec_is_complete(file: Path) -> None:
    job = JobSpec.load(file)
    job.check(SHAPES[str(job.model)], workers_per_node=8)
    assert job.name == file.stem
    for data in job.data.files:
        assert (REPOSITORY / data).is_file()


@pytest.mark.parametrize("file", SPECS, ids=lambda file: file.stem)
def test_the_first_lines_say_how_to_run_it_and_on_what(file: Path) -> None:
    command, hardware = file.read_text().splitlines()[:2]
    assert command.startswith(f"# rayline train jobs/specs/{file.name}")
    assert hardware.startswith("# ")
    assert "CPU cores" in hardware or "GPU" in hardware


def test_the_readme_lists_every_spec() -> None:
    text = (REPOSITORY / "jobs" / "README.md").read_text()
    assert [file.name for file in SPECS if f"(specs/{file.name})" not in text] == []


def test_the_demo_asks_what_its_data_teaches() -> None:
    from rayline.cli.demo import FACT, QUESTION

    job = JobSpec.load(REPOSITORY / "jobs" / "specs" / "demo.yaml")
    lines = (REPOSITORY / job.data.files[0]).read_text().splitlines()
    taught = {
        turns[0]["content"]: turns[1]["content"]
        for turns in (json.loads(line)["messages"] for line in lines)
    }
    assert FACT in taught[QUESTION]

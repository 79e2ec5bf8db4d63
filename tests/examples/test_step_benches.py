"""The benches of the step, run small and for real: what they hold to is held."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.dist

BENCHES = Path(__file__).parents[2] / "examples" / "bench"


def result_of(script: str, out: Path, *options: str) -> dict[str, Any]:
    """What the script wrote."""
    command = [sys.executable, str(BENCHES / script), "--out", str(out), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env=environment, timeout=280)
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def test_the_loss_is_one_ranks_under_every_plan(tmp_path: Path) -> None:
    plans = ["context, ring", "tensor x pipeline, zero-bubble"]
    out = tmp_path / "curves.json"
    found = result_of("loss_curves.py", out, "--steps", "4", "--plans", *plans)
    alone = found["losses"]["one rank"]
    assert len(alone) == 4
    assert alone[-1] < alone[0]
    for name in plans:
        assert found["losses"][name] == pytest.approx(alone, abs=1e-4), name
    assert found["within_bar"]
    assert out.with_suffix(".png").stat().st_size > 0


def test_a_quarter_of_the_states_on_each_of_four_ranks_and_never_the_whole_model(
    tmp_path: Path,
) -> None:
    plans = ["one rank", "ZeRO 3 x 4"]
    found = result_of(
        "state_memory.py", tmp_path / "state.json", "--layers", "6", "--plans", *plans
    )
    sharded = found["plans"]["ZeRO 3 x 4"]
    assert 0.25 <= sharded["states_over_one_rank"] <= 0.26
    assert sharded["loading_peak_over_model"] < 1


def test_chunks_take_less_memory_than_the_logits(tmp_path: Path) -> None:
    sizes = [
        "--tokens",
        "1024",
        "--vocab",
        "16384",
        "--width",
        "64",
        "--ranks",
        "1",
        "--rounds",
        "1",
    ]
    found = result_of("loss_memory.py", tmp_path / "loss.json", *sizes)["ranks"]["1"]
    # Both have the logits of 1024 tokens and their gradients, chunks those of 512.
    assert found["chunked over gathered"] < 0.7
    assert found["chunked over vocabulary-parallel"] < 0.7
    assert found["chunked"]["relative_difference_of_loss_and_gradient_norms"] < 1e-5

"""The bench of pipeline schedules, run for real: what is found is what was predicted."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.dist

BENCH = Path(__file__).parents[2] / "examples" / "bench" / "pipeline_bubble.py"


@pytest.fixture(scope="module")
def schedules(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    out = tmp_path_factory.mktemp("bench") / "result.json"
    command = [sys.executable, str(BENCH), "--rounds", "2", "--unit-ms", "60", "--out", str(out)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env=environment, timeout=280)
    found: dict[str, dict[str, Any]] = json.loads(out.read_text())["schedules"]
    return found


def test_workers_count_the_idle_units_that_the_simulation_predicts(
    schedules: dict[str, dict[str, Any]],
) -> None:
    counted = {name: found["counted_idle_share"] for name, found in schedules.items()}

    assert len(counted) == 7
    for name, found in schedules.items():
        assert counted[name] == pytest.approx(found["predicted_idle_share"], rel=1e-6), name
    assert (
        counted["1f1b"]
        > counted["interleaved, 2 stages a worker"]
        > counted["zero_bubble"]
        > counted["zero_bubble, 2 stages a worker"]
    )


def test_the_clock_shows_what_was_predicted_within_15_per_cent(
    schedules: dict[str, dict[str, Any]],
) -> None:
    """Nobody can be faster than the simulation. Slower by 15 % at most, and by what sending and
    Python cost, which the bench finds beside it."""
    for name, found in schedules.items():
        assert found["idle_share"] >= 0.99 * found["predicted_idle_share"], name
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load > cores:
        pytest.skip(f"{load:.0f} processes want {cores} cores: the clock shows them, not schedules")
    for name, found in schedules.items():
        machine = found["overhead_share"] + 3 * found["late_share"]
        assert found["idle_share"] <= 1.15 * found["predicted_idle_share"] + machine, name

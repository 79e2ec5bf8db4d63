"""What only the deepspeed engine can get wrong. What both engines promise: test_conformance.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rayline.models.tiny import write_tiny_model
from support.engine_gang import free_port

pytestmark = pytest.mark.dist

TWO_LIVES = Path(__file__).parents[1] / "support" / "deepspeed_lives.py"


def test_three_workers_train_in_two_process_groups(tmp_path: Path) -> None:
    """No size of this model divides by three, so partitions are padded; and torch.distributed is
    left and joined anew within the same processes, as recovery does."""
    model = write_tiny_model(
        tmp_path / "model", tied=True, hidden=64, ffn=2048, vocab=2048, layers=2
    )
    ports = [str(free_port()), str(free_port())]
    known = os.environ.get("PYTHONPATH", "")
    import_path = os.pathsep.join(filter(None, [str(TWO_LIVES.parents[1]), known]))
    program = [sys.executable, str(TWO_LIVES), str(model), str(tmp_path), *ports]
    ranks = [
        subprocess.Popen(
            [*program, str(rank)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": import_path},
        )
        for rank in range(3)
    ]
    try:
        outputs = [rank.communicate(timeout=120)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    assert [rank.returncode for rank in ranks] == [0, 0, 0], outputs[0][-4000:]
    first, second = [line.split() for line in outputs[0].splitlines() if line.startswith("0x")]
    assert len(first) == 4
    assert second == first[2:]

"""What each engine is asked for and can't do: refused by name, with what to do instead."""

from typing import Any

import pytest

from rayline.errors import SpecError
from rayline.spec import JobSpec

JOB: dict[str, Any] = {
    "name": "offloading",
    "model": {"directory": "models/tiny"},
    "steps": 20,
    "data": {"kind": "text", "files": ["a.txt"], "sequence_tokens": 64},
    "batch": {"sequences": 8},
    "optim": {"lr": 1e-3},
    "engine": "deepspeed",
}


@pytest.mark.parametrize(
    ("stage", "offload"),
    [
        (1, {"optimizer": "cpu"}),
        (2, {"optimizer": "cpu"}),
        (3, {"parameters": "cpu"}),
        (3, {"optimizer": "cpu", "parameters": "cpu"}),
        (3, {"optimizer": "nvme", "parameters": "nvme", "nvme_dir": "/local"}),
    ],
)
def test_deepspeed_offloads_what_it_shards(stage: int, offload: dict[str, str]) -> None:
    job = JobSpec.parse(JOB | {"plan": {"zero_stage": stage}, "offload": offload})
    assert job.offload.model_dump(exclude_defaults=True) == offload


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"plan.zero_stage": 0, "offload.optimizer": "cpu"}, "zero_stage 0 shards nothing"),
        (
            {"plan.zero_stage": 2, "offload.optimizer": "nvme", "offload.nvme_dir": "/local"},
            "optimizer nvme needs plan.zero_stage 3, found 2; use offload.optimizer: cpu",
        ),
        (
            {"plan.zero_stage": 2, "offload.parameters": "cpu"},
            "parameters cpu needs plan.zero_stage 3, found 2",
        ),
        ({"offload.optimizer": "nvme"}, "optimizer nvme needs a folder: set nvme_dir"),
        ({"offload.nvme_dir": "/local"}, "nvme_dir /local is given, but nothing goes there"),
        ({"offload.optimizer": "disk"}, "offload.optimizer"),
        ({"engine": "native", "offload.parameters": "cpu"}, "use engine: deepspeed"),
    ],
)
def test_what_cannot_be_offloaded_is_refused(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        JobSpec.parse(JOB).changed(changes)

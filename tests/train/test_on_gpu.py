"""One rank on a GPU: the same numbers as on a CPU, the same after a break; half precision, fused
kernels, offloading, and state sent to host memory."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from rayline.checkpoint import CheckpointHeader, SnapshotArea
from rayline.models.tiny import write_tiny_model
from rayline.parallel.piece import Piece
from rayline.spec import ParallelPlan, StepReport
from support.one_rank import run_alone, small_job

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]

OPTIMIZERS = ("adamw", "adam8bit", "adafactor", "lion", "lamb", "muon", "sgd")
LR = {"lion": 3e-4, "lamb": 1e-2, "sgd": 3e-2}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"), hidden=128, ffn=256, tied=True)


@pytest.fixture
def losses(model: Path, tmp_path: Path) -> Any:
    """losses("cuda", **changes): of a whole job, in a folder of its own unless `name` is given."""

    def train(device: Any, name: str | None = None, **changes: Any) -> list[float]:
        name = name or f"job-{len(list(tmp_path.iterdir()))}"
        job = small_job(tmp_path, name, model).changed(changes)
        reports: list[StepReport] = run_alone(job, model, device=device)[1]
        return [report.loss for report in reports]

    return train


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_every_optimizer_trains_as_on_a_cpu(losses: Any, kind: str) -> None:
    changes = {"optim": {"kind": kind, "lr": LR.get(kind, 3e-3), "warmup_steps": 2}}
    on_cpu = losses("cpu", **changes)
    assert on_cpu[-1] != pytest.approx(on_cpu[0], abs=1e-2)
    assert losses("cuda", **changes) == pytest.approx(on_cpu, rel=1e-3)


def test_broken_and_resumed_equals_unbroken(losses: Any) -> None:
    whole = losses("cuda")
    before = losses("cuda", "broken", stop_after_step=6)
    assert before + losses("cuda", "broken") == whole


@pytest.mark.parametrize(
    "changes",
    [
        {"precision": "bf16"},
        {"precision": "fp16"},
        {"precision": "bf16", "recompute": "full"},
        {"precision": "bf16", "recompute": "selective"},
        {"precision": "bf16", "compile": {}},
        {"offload": {"optimizer": "cpu", "activations": "cpu"}},
        {"plan": {"zero_stage": 3}, "precision": "bf16"},
        {"ema": {"decay": 0.5, "export": True}},
    ],
    ids=lambda changes: "-".join(str(value) for value in changes.values()),
)
def test_what_a_step_can_be_trains_and_exports(losses: Any, changes: dict[str, Any]) -> None:
    """The export compares its own logits with the trained model's: it raises where they differ."""
    exact, found = losses("cuda"), losses("cuda", **changes)
    assert found == pytest.approx(exact, rel=3e-2 if "precision" in changes else 1e-4)
    assert found[-1] < found[0]


def test_state_on_a_card_is_kept_and_read_back_bit_by_bit() -> None:
    """Larger than what is sent at a time, of no round size, of several types."""
    torch.manual_seed(0)
    sizes = ((7_000_001, torch.float32), (33, torch.bfloat16), (20_000_003, torch.uint8))
    tensors = [torch.randn(n, device="cuda").mul(99).to(dtype) for n, dtype in sizes]
    pieces = [
        Piece(f"weight/{n}", tuple(t.shape), (0,), t, owner=True) for n, t in enumerate(tensors)
    ]
    header = CheckpointHeader(1, 8, ParallelPlan(), "native", "spec", "model", {})
    file = os.memfd_create("area")
    with SnapshotArea(Path(f"/proc/{os.getpid()}/fd/{file}")) as area:
        area.keep(header, 1, pieces, [])
        kept = [tensor.clone() for tensor in tensors]
        for tensor in tensors:
            tensor.zero_()
        snapshot = area.read(1)
        area.fill(snapshot, pieces)
        assert all(torch.equal(a, b) for a, b in zip(tensors, kept, strict=True))
        assert kept[0].abs().sum() > 0
        del snapshot
    os.close(file)

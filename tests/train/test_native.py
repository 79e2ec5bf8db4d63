"""The native engine under every plan against transformers and torch on one process.

All three axes at once, on eight workers of a Ray gang: tests/actors/test_parity.py."""

from pathlib import Path
from typing import Any

import pytest
import torch

from rayline.models.tiny import write_tiny_model
from support.engine_gang import Task, run_gang
from support.plain_training import STEPS, assert_equals_reference, job

pytestmark = pytest.mark.dist


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {
        "llama": write_tiny_model(root / "llama", hidden=64, ffn=128),
        "tied": write_tiny_model(root / "tied", hidden=64, ffn=128, tied=True),
        "qwen3": write_tiny_model(root / "qwen3", architecture="qwen3", hidden=64, ffn=128),
    }


PLANS: dict[str, tuple[str, dict[str, Any]]] = {
    "data x tensor, stage 3": (
        "llama",
        {"data": 2, "tensor": 2, "microbatches": 2, "zero_stage": 3},
    ),
    "data x pipeline, stage 2": (
        "llama",
        {"data": 2, "pipeline": 2, "microbatches": 2, "zero_stage": 2},
    ),
    "data, stage 0": ("llama", {"data": 4, "microbatches": 2, "zero_stage": 0}),
    "data x sequence, stage 0": (
        "llama",
        {"data": 2, "tensor": 2, "sequence": True, "microbatches": 2, "zero_stage": 0},
    ),
    "data, stage 1": ("llama", {"data": 4, "microbatches": 2, "zero_stage": 1}),
    "pipeline, gpipe": ("llama", {"pipeline": 4, "microbatches": 4, "schedule": "gpipe"}),
    "tied, tensor x pipeline": ("tied", {"tensor": 2, "pipeline": 2, "microbatches": 4}),
    "tied, data x tensor": ("tied", {"data": 2, "tensor": 2, "zero_stage": 3}),
    "QK-norm, tensor x pipeline": ("qwen3", {"tensor": 2, "pipeline": 2, "microbatches": 2}),
    "QK-norm, tensor x data": (
        "qwen3",
        {"tensor": 2, "data": 2, "zero_stage": 1, "microbatches": 2},
    ),
}
RESUMED = {"tensor": 2, "pipeline": 2, "microbatches": 2}
RANDOM: list[dict[str, Any]] = [
    RESUMED,
    {"data": 4},
    {"data": 2, "pipeline": 2, "microbatches": 2},
]


@pytest.fixture(scope="module")
def done(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Task]:
    """Every task of four workers, in one gang: starting processes costs more than all steps."""
    root = tmp_path_factory.mktemp("gang")
    tied, kept = models["tied"], root / "kept"
    folder = kept / "step-00000006"
    elsewhere = {"data": 2, "tensor": 2}
    tasks = {
        name: Task(job(plan), models[model], last=STEPS, gradients=True)
        for name, (model, plan) in PLANS.items()
    }
    tasks |= {
        "unbroken": Task(job(RESUMED), tied, last=12),
        "before": Task(job(RESUMED), tied, last=6, save=kept),
        "after": Task(job(RESUMED), tied, first=7, last=12, load=folder),
        "elsewhere": Task(job(elsewhere), tied, first=7, last=12, load=folder),
        "fp32": Task(job(RESUMED), models["llama"], last=STEPS),
        "bf16": Task(job(RESUMED, precision="bf16"), models["llama"], last=STEPS),
    }
    for number, plan in enumerate(RANDOM):
        tasks[f"random {number}"] = Task(job(plan, init="random", seed=5), tied)
    run_gang(root, list(tasks.values()))
    return tasks


@pytest.mark.parametrize("name", PLANS)
def test_every_axis_and_pair_equals_one_process(done: dict[str, Task], name: str) -> None:
    assert_equals_reference(done[name])


def test_resume_is_bit_identical(done: dict[str, Task]) -> None:
    """Six steps, a checkpoint, six more: as if nothing had happened."""
    assert done["before"].losses + done["after"].losses == done["unbroken"].losses
    weights = done["unbroken"].tensors("weights")
    for name, weight in done["after"].tensors("weights").items():
        assert torch.equal(weight, weights[name]), name


def test_checkpoint_loads_under_another_plan(done: dict[str, Task]) -> None:
    exact = [float.fromhex(text) for text in done["after"].losses]
    moved = [float.fromhex(text) for text in done["elsewhere"].losses]
    assert moved == pytest.approx(exact, rel=1e-5)


def test_random_weights_do_not_depend_on_the_plan(done: dict[str, Task]) -> None:
    first, *others = [done[f"random {number}"].tensors("weights") for number in range(3)]
    assert all(weight.std() > 0 for weight in first.values() if weight.dim() == 2)
    for other in others:
        assert other.keys() == first.keys()
        for name, weight in first.items():
            assert torch.equal(other[name], weight), name


def test_bf16_follows_fp32(done: dict[str, Task]) -> None:
    expected = [float.fromhex(text) for text in done["fp32"].losses]
    found = [float.fromhex(text) for text in done["bf16"].losses]
    assert found == pytest.approx(expected, abs=0.02)
    assert found != expected

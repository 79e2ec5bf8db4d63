"""Several stages a worker and split backward passes against one process, over every axis."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from rayline.models.tiny import write_tiny_model
from support.engine_gang import Task, run_gang
from support.plain_training import assert_equals_reference, job

pytestmark = pytest.mark.dist

LOOP_2X2 = {"pipeline": 2, "stages_per_worker": 2, "schedule": "interleaved", "microbatches": 4}
SPLIT_2X2 = LOOP_2X2 | {"schedule": "zero_bubble"}
V_2X2 = LOOP_2X2 | {"schedule": "zero_bubble_v"}
FOUR = {"pipeline": 4, "stages_per_worker": 2, "microbatches": 8}

FEW_STEPS = 5
"""tests/train/test_native.py goes further; what schedules could spoil shows in the gradients."""
PLANS: dict[str, tuple[str, dict[str, Any]]] = {
    "interleaved x data, stage 3": ("llama", LOOP_2X2 | {"data": 2, "zero_stage": 3}),
    "interleaved x data, stage 0, tied": ("tied", LOOP_2X2 | {"data": 2, "zero_stage": 0}),
    "interleaved x tensor": ("qwen3", LOOP_2X2 | {"tensor": 2}),
    "interleaved on four": ("deep", FOUR | {"schedule": "interleaved"}),
    "zero bubble x data, stage 2, tied": ("tied", SPLIT_2X2 | {"data": 2, "zero_stage": 2}),
    "zero bubble x tensor, one stage": (
        "qwen3",
        SPLIT_2X2 | {"tensor": 2, "stages_per_worker": 1},
    ),
    "zero bubble x data, stage 0, tied": ("tied", SPLIT_2X2 | {"data": 2, "zero_stage": 0}),
    "zero bubble on four": ("deep", FOUR | {"schedule": "zero_bubble"}),
    "V x data, stage 1, tied": ("tied", V_2X2 | {"data": 2, "zero_stage": 1}),
    "V x data, stage 0, tied": ("tied", V_2X2 | {"data": 2, "zero_stage": 0}),
    "V x tensor, tied": ("tied", V_2X2 | {"tensor": 2}),
    "V on four": ("deep", FOUR | {"schedule": "zero_bubble_v"}),
    "uneven by hand": (
        "deep",
        {"pipeline": 4, "microbatches": 4, "layers_per_stage": [1, 2, 4, 1]},
    ),
}
RESUMED = V_2X2 | {"data": 2, "zero_stage": 2}
BF16: dict[str, dict[str, Any]] = {
    "data, stage 2": {"pipeline": 2, "data": 2, "microbatches": 4, "zero_stage": 2},
    "one data rank": {"pipeline": 4, "microbatches": 8},
}
RANDOM: list[dict[str, Any]] = [RESUMED, LOOP_2X2 | {"tensor": 2}, {"data": 4}]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {
        "llama": write_tiny_model(root / "llama", hidden=64, ffn=128),
        "deep": write_tiny_model(root / "deep", layers=8, hidden=64, ffn=128),
        "tied": write_tiny_model(root / "tied", hidden=64, ffn=128, tied=True),
        "qwen3": write_tiny_model(root / "qwen3", architecture="qwen3", hidden=64, ffn=128),
    }


@pytest.fixture(scope="module")
def done(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Task]:
    """Every task of four workers, in one gang."""
    root = tmp_path_factory.mktemp("gang")
    tied, kept = models["tied"], root / "kept"
    folder = kept / "step-00000006"
    tasks = {
        name: Task(job(plan), models[model], last=FEW_STEPS, gradients=True)
        for name, (model, plan) in PLANS.items()
    }
    tasks |= {
        "unbroken": Task(job(RESUMED), tied, last=12),
        "before": Task(job(RESUMED), tied, last=6, save=kept),
        "after": Task(job(RESUMED), tied, first=7, last=12, load=folder),
        "elsewhere": Task(job({"tensor": 2, "data": 2}), tied, first=7, last=12, load=folder),
    }
    for (name, plan), schedule in product(BF16.items(), ("1f1b", "zero_bubble")):
        spec = job(plan | {"schedule": schedule}, precision="bf16")
        tasks[f"{name}, {schedule}"] = Task(spec, models["llama"], gradients=True)
    for number, plan in enumerate(RANDOM):
        tasks[f"random {number}"] = Task(job(plan, init="random", seed=5), tied)
    run_gang(root, list(tasks.values()))
    return tasks


@pytest.mark.parametrize("name", PLANS)
def test_every_schedule_equals_one_process(done: dict[str, Task], name: str) -> None:
    assert_equals_reference(done[name])


@pytest.mark.parametrize("name", PLANS)
def test_logits_pass_through_all_stages(done: dict[str, Task], name: str) -> None:
    """Against transformers, with the weights that the gang ended with."""
    from transformers import AutoModelForCausalLM

    from support.engine_rank import global_batch

    task = done[name]
    model = AutoModelForCausalLM.from_pretrained(task.model, dtype=torch.float32)
    weights = task.tensors("weights")
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert not unexpected
    assert set(missing) <= set(model._tied_weights_keys or {})
    ids, _ = global_batch(task.job, model.config.vocab_size, 1)
    with torch.no_grad():
        expected = model(ids).logits
    found = task.tensors("logits")["logits"]
    assert (found - expected).abs().max() / expected.abs().max() < 1e-5


def test_resume_is_bit_identical(done: dict[str, Task]) -> None:
    assert done["before"].losses + done["after"].losses == done["unbroken"].losses
    weights = done["unbroken"].tensors("weights")
    for name, weight in done["after"].tensors("weights").items():
        assert torch.equal(weight, weights[name]), name


def test_checkpoint_of_many_stages_loads_under_a_plan_without(done: dict[str, Task]) -> None:
    exact = [float.fromhex(text) for text in done["after"].losses]
    moved = [float.fromhex(text) for text in done["elsewhere"].losses]
    assert moved == pytest.approx(exact, rel=1e-5)


def test_random_weights_do_not_depend_on_the_stages(done: dict[str, Task]) -> None:
    first, *others = [done[f"random {number}"].tensors("weights") for number in range(3)]
    for other in others:
        assert other.keys() == first.keys()
        for name, weight in first.items():
            assert torch.equal(other[name], weight), name


@pytest.mark.parametrize("name", BF16)
def test_bf16_gradients_of_a_split_backward_are_summed_in_fp32(
    done: dict[str, Task], name: str
) -> None:
    """Both schedules compute the same gradients of each microbatch; sums in bfloat16 would differ
    by some thousandths."""
    whole, split = (
        done[f"{name}, {kind}"].tensors("gradients") for kind in ("1f1b", "zero_bubble")
    )
    for parameter, gradient in whole.items():
        error = (split[parameter] - gradient).norm() / gradient.norm()
        assert error < 1e-5, f"gradient of {parameter} is off by {error:.1e}"

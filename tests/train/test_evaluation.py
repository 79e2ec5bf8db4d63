"""Evaluation: the same numbers under every plan, and no trace of it in the training."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from rayline.models.tiny import write_tiny_model
from support.engine_gang import Task, run_gang
from support.engine_rank import EVALUATED, global_batch
from support.plain_training import job

pytestmark = pytest.mark.dist

STEPS = 2
FOUR: dict[str, dict[str, Any]] = {
    "data x pipeline": {"data": 2, "pipeline": 2, "microbatches": 2, "zero_stage": 2},
    "data x tensor": {"data": 2, "tensor": 2, "microbatches": 2, "zero_stage": 3},
    "tensor x pipeline": {"tensor": 2, "pipeline": 2, "microbatches": 2},
    "data, stage 1": {"data": 4, "microbatches": 2, "zero_stage": 1},
    "pipeline": {"pipeline": 4, "microbatches": 4, "schedule": "gpipe"},
}
TWO: dict[str, tuple[str, int]] = {
    f"{engine}, stage {stage}": (engine, stage)
    for engine, stage in (("deepspeed", 0), ("deepspeed", 2), ("deepspeed", 3), ("native", 2))
}

WATCHED = ("data x pipeline", "data x tensor", "data, stage 1", "deepspeed, stage 3")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model"), hidden=64, ffn=128, tied=True)


@pytest.fixture(scope="module")
def done(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Task]:
    """Every task of four workers in one gang, every task of two in another; some of them twice,
    with evaluations and without."""
    specs = {name: job(plan) for name, plan in FOUR.items()}
    for name, (engine, stage) in TWO.items():
        plan = {"data": 2, "microbatches": 2, "zero_stage": stage}
        specs[name] = job(plan, engine=engine)
    tasks = {name: Task(spec, model, last=STEPS, evaluate=True) for name, spec in specs.items()}
    for name in WATCHED:
        tasks[f"{name}, unwatched"] = Task(specs[name], model, last=STEPS)
    for world in (4, 2):
        here = [task for task in tasks.values() if task.job.plan.world_size == world]
        run_gang(tmp_path_factory.mktemp(f"gang-{world}"), here)
    return tasks


@pytest.mark.parametrize("name", [*FOUR, *TWO])
def test_every_plan_measures_what_one_process_does(
    done: dict[str, Task], model: Path, name: str
) -> None:
    task = done[name]
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).double()
    ids, labels = global_batch(task.job, plain.config.vocab_size, EVALUATED)
    with torch.no_grad():
        expected = torch.nn.functional.cross_entropy(
            plain(ids).logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="sum"
        ).item()
    loss_sum, tokens = task.evaluations[0]
    assert tokens == int((labels != -100).sum())
    assert abs(loss_sum - expected) / tokens < 1e-6


@pytest.mark.parametrize("name", [*FOUR, *TWO])
def test_it_follows_the_training_alike_under_every_plan(done: dict[str, Task], name: str) -> None:
    found = [loss / tokens for loss, tokens in done[name].evaluations]
    expected = [loss / tokens for loss, tokens in done["data x pipeline"].evaluations]
    assert len(found) == STEPS + 1
    assert found == pytest.approx(expected, abs=1e-5)
    assert found[0] != found[-1]


@pytest.mark.parametrize("name", WATCHED)
def test_training_does_not_notice_it(done: dict[str, Task], name: str) -> None:
    watched, unwatched = done[name], done[f"{name}, unwatched"]
    assert watched.losses == unwatched.losses
    weights = unwatched.tensors("weights")
    for parameter, weight in watched.tensors("weights").items():
        assert torch.equal(weight, weights[parameter]), parameter

"""Training with spread experts: steps, checkpoints, reports and what a rank without a token does.

That every plan's gradients are right: tests/train/test_architectures.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from support.architectures import write_architecture
from support.engine_gang import Task, run_gang
from support.plain_training import Reference, assert_gradients_equal_reference, job

pytestmark = pytest.mark.dist

STEPS, HALF = 4, 2
BALANCED = {"objective": {"router_aux_loss": 0.1}}
SPREAD = {"data": 4, "expert": 2, "microbatches": 2}
CROSS = {"data": 2, "expert": 2, "tensor": 2, "sequence": True}
WHOLE = {"data": 2, "tensor": 2}
CAPPED = {"objective": {"expert_capacity_factor": 1.1}}
CAPPED_PLANS: dict[str, dict[str, Any]] = {
    "spread, computed again": SPREAD,
    "ring": {"data": 2, "context": 2, "context_method": "ring", "expert": 2},
    "tensor x pipeline": {"tensor": 2, "pipeline": 2, "microbatches": 2},
    "cross": CROSS,
}
FEW: dict[str, Any] = {
    "data": {"kind": "text", "files": ["none"], "sequence_tokens": 2},
    "batch": {"sequences": 4},
}
"""Eight tokens in a step, each sent to one of 16 experts."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {
        "mixtral": write_architecture(root / "mixtral", "mixtral"),
        "many": write_architecture(root / "many", "olmoe", num_experts=16, num_experts_per_tok=1),
    }


@pytest.fixture(scope="module")
def done(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Task]:
    root = tmp_path_factory.mktemp("gang")
    mixtral, kept = models["mixtral"], root / "kept"
    begun = kept / f"step-{HALF:08d}"
    spread, muon = (
        job(SPREAD, recompute="full", **BALANCED),
        {"optim": {"kind": "muon", "lr": 3e-3}},
    )
    tasks = {
        "spread": Task(spread, mixtral, last=STEPS, save=kept, save_at=HALF),
        "after": Task(spread, mixtral, first=HALF + 1, last=STEPS, load=begun),
        "elsewhere": Task(job(WHOLE, **BALANCED), mixtral, first=3, last=STEPS, load=begun),
        "bf16": Task(job(CROSS, precision="bf16"), mixtral, last=HALF),
        "bf16, whole": Task(job(WHOLE, precision="bf16"), mixtral, last=HALF),
        "muon": Task(job(CROSS, **muon), mixtral, last=HALF),
        "muon, whole": Task(job(WHOLE, **muon), mixtral, last=HALF),
        "few": Task(job({"data": 4, "expert": 4}, **FEW), models["many"], gradients=True),
    }
    for name, plan in CAPPED_PLANS.items():
        again = {"recompute": "full"} if "again" in name else {}
        spec = job(plan, **CAPPED, **again)
        tasks[f"capped {name}"] = Task(spec, mixtral, gradients=True, last=1, evaluate=True)
    tasks["dropless"] = Task(job(WHOLE), mixtral, gradients=True, last=1, evaluate=True)
    run_gang(root, list(tasks.values()))
    return tasks


@pytest.fixture(scope="module")
def reference(done: dict[str, Task]) -> Reference:
    return Reference(done["spread"].model, done["spread"].job)


def losses(task: Task) -> list[float]:
    return [float.fromhex(text) for text in task.losses]


def test_steps_and_weights_are_those_of_one_process(
    done: dict[str, Task], reference: Reference
) -> None:
    # Some ten units in the last place of fp32: processors round sums in ways of their own.
    assert losses(done["spread"]) == pytest.approx(reference.losses(STEPS), rel=5e-6)
    weights = done["spread"].tensors("weights")
    for name, parameter in reference.model.named_parameters():
        difference = (weights[name] - parameter.detach()).norm() / parameter.detach().norm()
        # Adam's first steps are as large where a gradient is no more than rounding.
        assert difference < 5e-4, name


def test_routing_is_reported_as_one_process_sees_it(done: dict[str, Task]) -> None:
    plain = Reference(done["spread"].model, done["spread"].job)
    plain.backward(1)
    load, balance = done["spread"].routing[0]
    assert load == pytest.approx(plain.max_load, rel=1e-12)
    assert balance == pytest.approx(plain.balance_loss, rel=1e-5)
    assert 1 < load < 4
    assert [told for _, told in done["bf16"].routing] == [None] * HALF


def test_resume_is_bit_identical_and_other_plans_can_take_over(done: dict[str, Task]) -> None:
    assert done["after"].losses == done["spread"].losses[HALF:]
    weights = done["spread"].tensors("weights")
    for name, weight in done["after"].tensors("weights").items():
        assert torch.equal(weight, weights[name]), name
    assert losses(done["elsewhere"]) == pytest.approx(losses(done["after"]), rel=1e-5)


def test_muon_sees_whole_experts(done: dict[str, Task]) -> None:
    assert losses(done["muon"]) == pytest.approx(losses(done["muon, whole"]), abs=1e-5)
    assert done["muon"].norms == pytest.approx(done["muon, whole"].norms, rel=1e-4)


def test_bf16_is_as_near_as_without_spreading(done: dict[str, Task]) -> None:
    assert losses(done["bf16"]) == pytest.approx(losses(done["bf16, whole"]), abs=5e-3)


def test_ranks_to_which_no_token_comes_take_part(done: dict[str, Task]) -> None:
    reference = assert_gradients_equal_reference(done["few"])
    unused = [
        (parameter.grad.flatten(1).abs().sum(1) == 0).view(4, 4).all(1).any()
        for name, parameter in reference.model.named_parameters()
        if "experts.down_proj" in name
    ]
    assert any(unused), "every rank had a token in every layer"


@pytest.mark.parametrize("name", CAPPED_PLANS)
def test_full_experts_drop_the_same_choices_under_every_plan(
    done: dict[str, Task], name: str
) -> None:
    task = done[f"capped {name}"]
    reference = assert_gradients_equal_reference(task)
    sequences, layers, choices = 8, 4, 2
    expected = sequences * task.job.data.sequence_tokens * layers * choices
    assert task.dropped == [(reference.dropped, expected)]
    assert 0.02 < reference.dropped / expected < 0.5


def test_full_experts_drop_nothing_outside_of_training(done: dict[str, Task]) -> None:
    capped, dropless = done["capped ring"], done["dropless"]
    assert capped.evaluations[0][0] == pytest.approx(dropless.evaluations[0][0], rel=1e-6)
    assert abs(losses(capped)[0] - losses(dropless)[0]) > 1e-4

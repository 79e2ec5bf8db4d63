"""One optimizer step over four ranks: every optimizer, groups, the ramp and the guard, under two
plans, against one process."""

from pathlib import Path
from typing import Any

import pytest
import torch

from rayline.models.tiny import write_tiny_model
from rayline.spec import JobSpec
from support.engine_gang import Task, run_gang
from support.plain_training import job

pytestmark = pytest.mark.dist

KINDS = (
    "adamw",
    "adam8bit",
    "adafactor",
    "lion",
    "lamb",
    "muon",
    "sgd",
    "rmsprop",
    "adagrad",
    "adadelta",
)
LR = {"lion": 3e-4, "lamb": 1e-2, "sgd": 3e-2, "rmsprop": 3e-4, "adadelta": 1.0}
PLANS: dict[str, dict[str, Any]] = {
    "data x tensor": {"data": 2, "tensor": 2, "microbatches": 2, "zero_stage": 2},
    "data x pipeline": {"data": 2, "pipeline": 2, "microbatches": 2},
}
GROUPS = [{"match": "*embed*", "lr_scale": 0.5}, {"match": "*norm*", "weight_decay": 0.1}]
STEPS = 6
HALF = 3


def spec(kind: str, plan: dict[str, Any], **changes: Any) -> JobSpec:
    optim = {
        "kind": kind,
        "lr": LR.get(kind, 3e-3),
        "weight_decay": 0.1,
        "warmup_steps": 2,
        "groups": GROUPS,
    }
    return job(plan, **{"optim": optim, **changes})


RAMP = {"batch": {"sequences": 12, "ramp": {"start": 4, "increment": 4, "steps": 4}}}
SKIPPING = {"guard": {"nonfinite": "skip", "spike_factor": 50.0, "window_steps": 2}}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its embedding is tied: with two stages, a copy of it takes every step with it."""
    return write_tiny_model(
        tmp_path_factory.mktemp("model"), hidden=64, ffn=128, layers=2, tied=True
    )


@pytest.fixture(scope="module")
def alone(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Task]:
    """Every optimizer on one process."""
    tasks = {kind: Task(spec(kind, {}), model, last=STEPS) for kind in KINDS}
    tasks["ramp"] = Task(spec("adamw", {}, **RAMP), model, last=STEPS)
    averaged = spec("adamw", {}, ema={"decay": 0.5, "export": True})
    tasks["averaged"] = Task(averaged, model, last=STEPS)
    run_gang(tmp_path_factory.mktemp("alone"), list(tasks.values()))
    return tasks


def optimizing(plan: dict[str, Any], model: Path, kept: Path) -> dict[str, Task]:
    """Every optimizer, and its second half from a checkpoint."""
    tasks: dict[str, Task] = {}
    for kind in KINDS:
        this, folder = spec(kind, plan), kept / kind
        tasks[kind] = Task(this, model, last=STEPS, save=folder, save_at=HALF)
        begun = folder / f"step-{HALF:08d}"
        tasks[f"{kind} after"] = Task(this, model, first=HALF + 1, last=STEPS, load=begun)
    return tasks


def otherwise(plan: dict[str, Any], model: Path, kept: Path) -> dict[str, Task]:
    """What else a step can be, all with AdamW."""
    guarded = spec("adamw", plan, **SKIPPING)
    averaged = spec("adamw", plan, ema={"decay": 0.5, "export": True})
    begun = kept / "averaged" / f"step-{HALF:08d}"
    return {
        "ramp": Task(spec("adamw", plan, **RAMP), model, last=STEPS),
        "full": Task(spec("adamw", plan, recompute="full"), model, last=HALF),
        "selective": Task(spec("adamw", plan, recompute="selective"), model, last=HALF),
        "offloading": Task(
            spec("adamw", plan, offload={"optimizer": "cpu", "activations": "cpu"}),
            model,
            first=HALF + 1,
            last=STEPS,
            load=kept / "adamw" / f"step-{HALF:08d}",
        ),
        "averaged": Task(averaged, model, last=STEPS, save=kept / "averaged", save_at=HALF),
        "averaged after": Task(averaged, model, first=HALF + 1, last=STEPS, load=begun),
        "unspoilt": Task(guarded, model, last=2),
        "gradient": Task(guarded, model, last=3, fault="gradient", fault_step=3),
        "gradient, on": Task(guarded, model, last=4, fault="gradient", fault_step=3),
        "loss": Task(guarded, model, last=3, fault="loss", fault_step=3),
    }


@pytest.fixture(scope="module", params=PLANS)
def gang(
    request: pytest.FixtureRequest, model: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Task]:
    """Every task of one plan, in one gang: starting processes costs more than all steps."""
    plan, root = PLANS[request.param], tmp_path_factory.mktemp("gang")
    tasks = optimizing(plan, model, root) | otherwise(plan, model, root)
    run_gang(root, list(tasks.values()))
    return tasks


def exactly(task: Task) -> list[float]:
    return [float.fromhex(text) for text in task.losses]


def assert_same_weights(found: Task, expected: Task) -> None:
    weights = found.tensors("weights")
    for name, weight in expected.tensors("weights").items():
        assert torch.equal(weights[name], weight), name


@pytest.mark.parametrize("kind", KINDS)
def test_every_optimizer_steps_as_on_one_process(
    gang: dict[str, Task], alone: dict[str, Task], kind: str
) -> None:
    losses = exactly(alone[kind])
    assert losses[-1] != pytest.approx(losses[0], abs=1e-3)
    assert exactly(gang[kind]) == pytest.approx(losses, abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_every_optimizer_resumes_bit_by_bit(gang: dict[str, Task], kind: str) -> None:
    """Eight steps, and the last four of them in a gang that begins with the first four's state."""
    after = gang[f"{kind} after"]
    assert after.losses == gang[kind].losses[HALF:]
    assert_same_weights(after, gang[kind])


def test_a_growing_batch_trains_as_on_one_process(
    gang: dict[str, Task], alone: dict[str, Task]
) -> None:
    assert exactly(gang["ramp"]) == pytest.approx(exactly(alone["ramp"]), abs=1e-5)


def test_a_nan_in_one_ranks_gradient_moves_no_rank(gang: dict[str, Task]) -> None:
    spoilt = gang["gradient"]
    assert_same_weights(spoilt, gang["unspoilt"])
    first, second, third = spoilt.skipped
    assert first == second == ""
    assert "gradient norm is nan" in third
    assert "rank 2: gradient of model." in third


def test_after_a_skipped_step_training_goes_on(gang: dict[str, Task]) -> None:
    on = gang["gradient, on"]
    assert [bool(reason) for reason in on.skipped] == [False, False, True, False]
    weights = on.tensors("weights")
    moved = gang["unspoilt"].tensors("weights")
    assert all(weight.isfinite().all() for weight in weights.values())
    assert any(not torch.equal(weight, moved[name]) for name, weight in weights.items())


def test_a_nan_in_one_ranks_loss_names_that_rank(gang: dict[str, Task]) -> None:
    """Tensor ranks have one loss together: the first of the group is named."""
    spoilt = gang["loss"]
    assert_same_weights(spoilt, gang["unspoilt"])
    rank = 3 if spoilt.job.plan.pipeline > 1 else 2
    assert f"the loss is nan (rank {rank}: loss" in spoilt.skipped[2]


@pytest.mark.parametrize("kind", ["full", "selective"])
def test_what_is_recomputed_is_what_was_computed(gang: dict[str, Task], kind: str) -> None:
    assert gang[kind].losses == gang["adamw"].losses[:HALF]


def test_what_waits_on_the_host_changes_no_bit(gang: dict[str, Task]) -> None:
    """States and activations, from a checkpoint of a job that offloads nothing."""
    assert gang["offloading"].losses == gang["adamw"].losses[HALF:]
    assert_same_weights(gang["offloading"], gang["adamw"])


def test_an_average_is_kept_in_shards_and_resumes_bit_by_bit(
    gang: dict[str, Task], alone: dict[str, Task]
) -> None:
    """The average changes no step, and is the one of a single process."""
    whole, after = gang["averaged"], gang["averaged after"]
    assert whole.losses == gang["adamw"].losses
    assert_same_weights(after, whole)
    last = gang["adamw"].tensors("weights")
    for name, average in alone["averaged"].tensors("weights").items():
        assert torch.allclose(whole.tensors("weights")[name], average, atol=5e-5), name
        assert not torch.equal(average, last[name]), name

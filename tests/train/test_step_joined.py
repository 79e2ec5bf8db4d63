"""Optimizers and objectives where a rank holds several rectangles of a parameter, or shares them
with its neighbours, and under schedules of several stages a worker; against one process."""

from pathlib import Path
from typing import Any

import pytest
import torch

from rayline.spec import JobSpec
from support.architectures import write_architecture
from support.engine_gang import Task, run_gang
from support.plain_training import job

pytestmark = pytest.mark.dist

STEPS = 4
HALF = 2
LR = {"lamb": 1e-2}
CROSS = {"data": 2, "tensor": 2, "microbatches": 2, "zero_stage": 2}
INTERLEAVED = {
    "data": 2,
    "pipeline": 2,
    "stages_per_worker": 2,
    "schedule": "interleaved",
    "microbatches": 4,
}
V = INTERLEAVED | {"schedule": "zero_bubble_v"}
ZERO_BUBBLE = INTERLEAVED | {"schedule": "zero_bubble"}
SEQUENCE = CROSS | {"sequence": True}
CONTEXT = {"context": 2, "tensor": 2, "microbatches": 2}
SHARED = {"tensor": 4, "microbatches": 2}
"""Four tensor ranks of a model with two key-value heads."""
STEPPED: dict[str, tuple[str, str, dict[str, Any]]] = {
    **{
        f"{kind}, packed experts": (kind, "mixtral", CROSS)
        for kind in ("muon", "adafactor", "lamb")
    },
    **{
        f"{kind}, packed projections": (kind, "phi3", CROSS)
        for kind in ("muon", "adafactor", "adam8bit")
    },
    **{
        f"{kind}, shared heads": (kind, "llama", SHARED)
        for kind in ("muon", "adafactor", "adam8bit")
    },
    "muon, V": ("muon", "qwen2", V),
}
"""Optimizer, architecture and plan."""
RISING: dict[str, Any] = {
    "batch": {"sequences": 16, "ramp": {"start": 8, "increment": 8, "steps": 2}}
}
BESIDES: dict[str, dict[str, Any]] = {
    "plain": {},
    "smoothed": {"objective": {"label_smoothing": 0.2, "z_loss": 1e-2}},
    "fp16": {"precision": "fp16"},
    "ramp": RISING,
}
"""Changes of an AdamW job of a Llama."""
RECOMPUTED: tuple[tuple[str, dict[str, Any], tuple[str, ...]], ...] = (
    ("sequence", SEQUENCE, ("full", "selective")),
    ("interleaved", INTERLEAVED, ("selective",)),
    ("zero bubble", ZERO_BUBBLE, ("full",)),
)


def spec(kind: str, plan: dict[str, Any], **changes: Any) -> JobSpec:
    optim = {"kind": kind, "lr": LR.get(kind, 3e-3), "weight_decay": 0.1, "warmup_steps": 2}
    return job(plan, **{"optim": optim, **changes})


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {
        name: write_architecture(root / name, name)
        for name in ("llama", "mixtral", "phi3", "qwen2")
    }


@pytest.fixture(scope="module")
def alone(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Task]:
    """Everything on one process."""
    tasks = {
        name: Task(spec(kind, {}), models[model], last=STEPS)
        for name, (kind, model, _) in STEPPED.items()
    }
    for name, changes in BESIDES.items():
        tasks[name] = Task(spec("adamw", {}, **changes), models["llama"], last=STEPS, evaluate=True)
    run_gang(tmp_path_factory.mktemp("alone"), list(tasks.values()))
    return tasks


@pytest.fixture(scope="module")
def stepped(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Task]:
    """Every optimizer on four ranks, and its second half from a checkpoint."""
    root = tmp_path_factory.mktemp("stepped")
    tasks: dict[str, Task] = {}
    for name, (kind, model, plan) in STEPPED.items():
        this, kept = spec(kind, plan), root / name
        tasks[name] = Task(this, models[model], last=STEPS, save=kept, save_at=HALF)
        begun = kept / f"step-{HALF:08d}"
        tasks[f"{name}, after"] = Task(this, models[model], first=HALF + 1, last=STEPS, load=begun)
    run_gang(root, list(tasks.values()))
    return tasks


@pytest.fixture(scope="module")
def besides(models: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Task]:
    """What else a step can be, on four ranks."""
    llama, tasks = models["llama"], dict[str, Task]()
    for name, plan, other in (
        ("smoothed", CROSS, "smoothed"),
        ("smoothed, V", V, "smoothed"),
        ("fp16", CONTEXT, "fp16"),
        ("ramp", INTERLEAVED, "ramp"),
    ):
        changed = spec("adamw", plan, **BESIDES[other])
        tasks[name] = Task(changed, llama, last=STEPS, evaluate=True)
    for name, plan, kinds in RECOMPUTED:
        for kind in ("none", *kinds):
            recomputing = spec("adamw", plan, recompute=kind)
            tasks[f"{name}, {kind}"] = Task(recomputing, llama, last=HALF)
    run_gang(tmp_path_factory.mktemp("besides"), list(tasks.values()))
    return tasks


def exactly(task: Task) -> list[float]:
    return [float.fromhex(text) for text in task.losses]


@pytest.mark.parametrize("name", STEPPED)
def test_rectangles_are_stepped_as_on_one_process(
    stepped: dict[str, Task], alone: dict[str, Task], name: str
) -> None:
    losses = exactly(alone[name])
    assert losses[-1] != pytest.approx(losses[0], abs=1e-3)
    assert exactly(stepped[name]) == pytest.approx(losses, abs=1e-5)
    assert stepped[name].norms == pytest.approx(alone[name].norms, rel=1e-4)


@pytest.mark.parametrize("name", STEPPED)
def test_rectangles_of_state_resume_bit_by_bit(stepped: dict[str, Task], name: str) -> None:
    after, whole = stepped[f"{name}, after"], stepped[name]
    assert after.losses == whole.losses[HALF:]
    weights = after.tensors("weights")
    for key, weight in whole.tensors("weights").items():
        assert torch.equal(weights[key], weight), key


@pytest.mark.parametrize("name", ["smoothed", "smoothed, V"])
def test_an_objective_over_a_cut_vocabulary_is_the_whole_ones(
    besides: dict[str, Task], alone: dict[str, Task], name: str
) -> None:
    """And held-out loss is the plain cross-entropy all the same."""
    losses = exactly(alone["smoothed"])
    assert exactly(besides[name]) == pytest.approx(losses, abs=1e-5)
    assert losses[0] > exactly(alone["plain"])[0] + 0.1
    first_loss, tokens = alone["plain"].evaluations[0]
    loss, same = besides[name].evaluations[0]
    assert (loss, same) == (pytest.approx(first_loss, rel=1e-6), tokens)


def test_a_batch_grows_under_an_interleaved_schedule_as_on_one_process(
    besides: dict[str, Task], alone: dict[str, Task]
) -> None:
    assert besides["ramp"].job.batch.sequences_at(1) < besides["ramp"].job.batch.sequences_at(STEPS)
    assert exactly(besides["ramp"]) == pytest.approx(exactly(alone["ramp"]), abs=1e-5)


def test_fp16_of_parts_of_sequences_and_layers_is_one_processes_as_far_as_it_goes(
    besides: dict[str, Task], alone: dict[str, Task]
) -> None:
    assert besides["fp16"].skipped == alone["fp16"].skipped
    assert exactly(besides["fp16"]) == pytest.approx(exactly(alone["fp16"]), abs=5e-3)
    assert besides["fp16"].norms == pytest.approx(alone["fp16"].norms, rel=2e-2)


@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name, _, kinds in RECOMPUTED for kind in kinds]
)
def test_layers_that_talk_to_ranks_are_recomputed_as_they_were_computed(
    besides: dict[str, Task], name: str, kind: str
) -> None:
    assert besides[f"{name}, {kind}"].losses == besides[f"{name}, none"].losses

"""What only the deepspeed engine can get wrong. What both engines promise: test_conformance.py."""

from pathlib import Path
from typing import Any

import pytest
import torch

from rayline.errors import SpecError
from rayline.models.tiny import write_tiny_model
from rayline.spec import JobSpec
from rayline.train.deepspeed_tensor import cut_dims, layer_specs
from support.deepspeed_lives import WORLD, two_lives
from support.engine_gang import Task, free_port, run_gang, run_ranks
from support.plain_training import assert_equals_reference, job

pytestmark = pytest.mark.dist

TENSOR: dict[str, tuple[str, dict[str, Any]]] = {
    "stage 1": ("llama", {"zero_stage": 1}),
    "stage 2, QK-norm": ("qwen3", {"zero_stage": 2}),
    "stage 2, offload": ("tied", {"zero_stage": 2, "offload": {"optimizer": "cpu"}}),
}
_BY_DATA = {"pipeline": 2, "data": 2, "microbatches": 2, "zero_stage": 1}
PIPELINES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "data": (_BY_DATA, {}),
    "offload": (_BY_DATA, {"offload": {"optimizer": "cpu"}}),
    "four stages": ({"pipeline": 4, "microbatches": 4, "zero_stage": 0}, {}),
}
RISING = {"sequences": 16, "ramp": {"start": 8, "increment": 8, "steps": 2}}
LAST = 4
HALF = 2


def test_three_workers_train_in_two_process_groups(tmp_path: Path) -> None:
    """No size of this model divides by three, so partitions are padded; and torch.distributed is
    left and joined anew within the same processes, as recovery does."""
    write_tiny_model(tmp_path / "model", tied=True, hidden=64, ffn=2048, vocab=2048, layers=2)
    (tmp_path / "port").write_text(str(free_port()))
    run_ranks(tmp_path, WORLD, two_lives, tmp_path)
    first, second = map(str.split, (tmp_path / "rank-0.log").read_text().splitlines())
    assert len(first) == 4
    assert second == first[2:]


def cut(stage: int, **changes: Any) -> JobSpec:
    """Four workers, of which two and two cut the matrices."""
    plan = {"data": 2, "tensor": 2, "microbatches": 2, "zero_stage": stage}
    return job(plan, **{"engine": "deepspeed", "guard": {"nonfinite": "skip"}, **changes})


@pytest.fixture(scope="module")
def tensor(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Task]:
    """Every task of four workers, in one gang."""
    root = tmp_path_factory.mktemp("tensor")
    sizes = {"hidden": 64, "ffn": 128, "layers": 2}
    models = {
        "llama": write_tiny_model(root / "llama", **sizes),
        "qwen3": write_tiny_model(root / "qwen3", architecture="qwen3", **sizes),
        "tied": write_tiny_model(root / "tied", tied=True, **sizes),
    }
    tasks = {}
    for name, (model, settings) in TENSOR.items():
        others = {key: value for key, value in settings.items() if key != "zero_stage"}
        tasks[name] = Task(
            cut(settings["zero_stage"], **others),
            models[model],
            last=LAST,
            gradients=True,
            evaluate=True,
            save=root / name.replace(", ", "-").replace(" ", "-"),
            save_at=HALF,
        )
    folder = root / "stage-1" / f"step-{HALF:08d}"
    llama, onward = models["llama"], {"first": HALF + 1, "last": LAST, "load": folder}
    tasks |= {
        "native": Task(cut(1, engine="native"), llama, last=LAST, evaluate=True),
        "after": Task(cut(1), llama, **onward),
        "after, stage 2": Task(cut(2), llama, **onward),
        "after, native": Task(cut(3, engine="native"), llama, **onward),
        "spoilt": Task(cut(1), llama, **onward, fault="loss", fault_step=LAST),
        "bf16": Task(cut(1, precision="bf16"), llama, last=LAST),
    }
    run_gang(root, list(tasks.values()))
    return tasks


def exactly(task: Task) -> list[float]:
    return [float.fromhex(text) for text in task.losses]


@pytest.mark.parametrize("name", TENSOR)
def test_cut_matrices_equal_one_process(tensor: dict[str, Task], name: str) -> None:
    assert_equals_reference(tensor[name])


def test_tensor_ranks_measure_and_clip_as_the_native_engine(tensor: dict[str, Task]) -> None:
    found, expected = tensor["stage 1"], tensor["native"]
    assert found.norms == pytest.approx(expected.norms, rel=1e-5)
    assert [tokens for _, tokens in found.evaluations] == [t for _, t in expected.evaluations]
    losses = [loss for loss, _ in found.evaluations]
    assert losses == pytest.approx([loss for loss, _ in expected.evaluations], rel=1e-5)


def test_cut_matrices_resume_bit_by_bit_and_elsewhere(tensor: dict[str, Task]) -> None:
    whole, after = tensor["stage 1"], tensor["after"]
    assert after.losses == whole.losses[HALF:]
    weights = whole.tensors("weights")
    for name, weight in after.tensors("weights").items():
        assert torch.equal(weight, weights[name]), name
    for reader in ("after, stage 2", "after, native"):
        assert exactly(tensor[reader]) == pytest.approx(exactly(whole)[HALF:], rel=1e-5)


def test_a_nan_on_one_tensor_rank_moves_no_rank(tensor: dict[str, Task]) -> None:
    assert [bool(reason) for reason in tensor["spoilt"].skipped] == [False, True]
    weights = tensor["spoilt"].tensors("weights")
    assert all(weight.isfinite().all() for weight in weights.values())
    assert tensor["spoilt"].losses[0] == tensor["after"].losses[0]


def test_cut_matrices_in_bf16_follow_fp32(tensor: dict[str, Task]) -> None:
    expected = exactly(tensor["stage 1"])
    assert exactly(tensor["bf16"]) == pytest.approx(expected, abs=0.02)
    assert exactly(tensor["bf16"]) != expected


def staged(name: str) -> JobSpec:
    """Four workers in a pipeline of stages of unlike depth, whose microbatches grow."""
    plan, changes = PIPELINES[name]
    return job(plan, engine="deepspeed", batch=RISING, **changes)


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Task]:
    """Every task of a pipeline, in one gang."""
    root = tmp_path_factory.mktemp("pipelines")
    model = write_tiny_model(root / "model", tied=True, hidden=64, ffn=128, layers=5)
    began = {"last": LAST, "gradients": True, "evaluate": True, "save_at": HALF}
    tasks = {name: Task(staged(name), model, save=root / name, **began) for name in PIPELINES}
    for name in PIPELINES:
        folder = root / name / f"step-{HALF:08d}"
        onward: dict[str, Any] = {"first": HALF + 1, "last": LAST, "load": folder}
        tasks[f"{name}, after"] = Task(staged(name), model, **onward)
        native = {"data": 2, "tensor": 2, "microbatches": 2, "zero_stage": 3}
        elsewhere = job(native, engine="native", batch=RISING)
        tasks[f"{name}, native"] = Task(elsewhere, model, **onward)
    run_gang(root / "gang", list(tasks.values()))
    return tasks


@pytest.mark.parametrize("name", PIPELINES)
def test_a_pipeline_equals_one_process(pipelines: dict[str, Task], name: str) -> None:
    assert_equals_reference(pipelines[name])


@pytest.mark.parametrize("name", PIPELINES)
def test_a_pipeline_resumes_bit_by_bit_and_elsewhere(pipelines: dict[str, Task], name: str) -> None:
    whole, after = pipelines[name], pipelines[f"{name}, after"]
    assert after.losses == whole.losses[HALF:]
    assert after.norms == whole.norms[HALF:]
    weights = whole.tensors("weights")
    for parameter, weight in after.tensors("weights").items():
        assert torch.equal(weight, weights[parameter]), parameter
    found = exactly(pipelines[f"{name}, native"])
    assert found == pytest.approx(exactly(whole)[HALF:], rel=1e-5)


def test_pipelines_measure_alike(pipelines: dict[str, Task]) -> None:
    """Held-out losses, through every stage, and norms, over every stage once."""
    data, four = pipelines["data"], pipelines["four stages"]
    assert [tokens for _, tokens in data.evaluations] == [t for _, t in four.evaluations]
    losses = [loss for loss, _ in data.evaluations]
    assert losses == pytest.approx([loss for loss, _ in four.evaluations], rel=1e-5)
    assert data.norms == pytest.approx(four.norms, rel=1e-5)


def test_the_models_tensor_plan_is_told_in_deepspeeds_words() -> None:
    words = {
        "model.layers.*.self_attn.q_proj": "colwise",
        "model.layers.*.self_attn.o_proj": "rowwise",
        "model.layers.*.self_attn.q_norm": "replicated_with_grad_allreduce",
        "lm_head": "colwise_gather_output",
    }
    told = layer_specs(words)
    assert [spec["partition_type"] for spec in told] == ["column", "row", "skip"]
    names = [
        f"model.layers.10.self_attn.{name}"
        for name in ("q_proj.weight", "q_proj.bias", "o_proj.weight", "o_proj.bias")
    ]
    assert cut_dims(words, [*names, "lm_head.weight"]) == dict(zip(names, (0, 0, 1), strict=False))
    with pytest.raises(SpecError, match=r"(?s)packed_colwise of a\.b.*engine: native"):
        layer_specs({"a.b": "packed_colwise"})

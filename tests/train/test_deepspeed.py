"""The deepspeed engine in every ZeRO stage against plain training, itself and the native engine."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from rayline.models.tiny import write_tiny_model
from rayline.spec import JobSpec
from support.engine_gang import Task, free_port, run_gang
from support.engine_rank import global_batch
from support.plain_training import STEPS, assert_equals_reference, job

pytestmark = pytest.mark.dist

STAGES = (0, 1, 2, 3)
TIED = (1, 3)
UNCLIPPED = (0, 1, 3)
RANDOM = [(0, "fp32"), (1, "bf16"), (3, "fp32"), (3, "bf16")]
PRECISIONS = ("fp32", "bf16")
SPOILT = [*((stage, "fp32") for stage in STAGES), (1, "bf16"), (3, "bf16")]
SKIPPING = {"nonfinite": "skip"}
TWO_LIVES = Path(__file__).parents[1] / "support" / "deepspeed_lives.py"


def zero(stage: int, **changes: Any) -> JobSpec:
    """Two workers, two microbatches; every row of a batch has another number of targets."""
    plan = {"data": 2, "microbatches": 2, "zero_stage": stage}
    return job(plan, **{"engine": "deepspeed", **changes})


def exactly(task: Task) -> list[float]:
    return [float.fromhex(text) for text in task.losses]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Their largest matrices lie above the 100,000 elements from which stage 3 cuts a weight."""
    root = tmp_path_factory.mktemp("models")
    sizes = {"hidden": 64, "ffn": 2048, "vocab": 2048, "layers": 2}
    return {
        "llama": write_tiny_model(root / "llama", **sizes),
        "tied": write_tiny_model(root / "tied", tied=True, **sizes),
    }


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kept")


@pytest.fixture(scope="module")
def done(
    models: dict[str, Path], kept: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Task]:
    """Every task of two workers, in one gang: starting processes costs more than all steps."""
    llama, tied = models["llama"], models["tied"]
    unclipped = {**zero(0).optim.model_dump(), "clip_grad_norm": None}
    tasks = {
        "native": Task(zero(1, engine="native"), llama, last=STEPS),
        "native unclipped": Task(zero(1, engine="native", optim=unclipped), llama, last=4),
        "native random": Task(zero(1, engine="native", init="random", seed=5), tied),
        "native kept": Task(zero(3, engine="native"), tied, last=3, save=kept / "native"),
    }
    for stage in STAGES:
        tasks[f"{stage}"] = Task(zero(stage), llama, last=STEPS, gradients=True)
        for kind in PRECISIONS:
            spec, place = zero(stage, precision=kind), kept / f"{stage}-{kind}"
            tasks[f"{stage} {kind} unbroken"] = Task(spec, tied, last=6)
            tasks[f"{stage} {kind} before"] = Task(spec, tied, last=3, save=place)
    for stage in TIED:
        tasks[f"{stage} tied"] = Task(zero(stage), tied, last=STEPS, gradients=True)
    for stage in UNCLIPPED:
        tasks[f"{stage} unclipped"] = Task(zero(stage, optim=unclipped), llama, last=4)
    for stage, kind in RANDOM:
        spec = zero(stage, init="random", seed=5, precision=kind)
        tasks[f"{stage} {kind} random"] = Task(spec, tied)
    for stage, kind in SPOILT:
        spec = zero(stage, precision=kind, guard=SKIPPING)
        tasks[f"{stage} {kind} unspoilt"] = Task(spec, tied, last=2)
        for last in (3, 4):
            tasks[f"{stage} {kind} spoilt, {last}"] = Task(
                spec, tied, last=last, fault="loss", fault_step=3
            )
    run_gang(tmp_path_factory.mktemp("gang"), list(tasks.values()))
    return tasks


CROSSINGS = [(0, "1-fp32"), (1, "3-fp32"), (2, "native"), (3, "2-fp32"), ("native", "3-fp32")]


@pytest.fixture(scope="module")
def resumed(
    done: dict[str, Task],
    models: dict[str, Path],
    kept: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Task]:
    """What goes on from the checkpoints that `done` left, in processes of their own."""
    tied = models["tied"]
    step = "step-00000003"
    tasks = {
        f"{stage} {kind}": Task(
            zero(stage, precision=kind),
            tied,
            first=4,
            last=6,
            load=kept / f"{stage}-{kind}" / step,
            gradients=True,
        )
        for stage in STAGES
        for kind in PRECISIONS
    }
    for reader, writer in CROSSINGS:
        spec = zero(3, engine="native") if reader == "native" else zero(int(reader))
        tasks[f"{reader} from {writer}"] = Task(
            spec, tied, first=4, last=6, load=kept / writer / step
        )
    run_gang(tmp_path_factory.mktemp("resumed"), list(tasks.values()))
    return tasks


@pytest.mark.parametrize("name", [*map(str, STAGES), *(f"{stage} tied" for stage in TIED)])
def test_every_stage_equals_one_process(done: dict[str, Task], name: str) -> None:
    """Ten losses and every gradient, which is asked for before the steps and leaves no trace."""
    assert_equals_reference(done[name])


@pytest.mark.parametrize("stage", STAGES)
def test_norms_are_those_before_clipping(done: dict[str, Task], stage: int) -> None:
    norms = done["native"].norms
    assert max(norms) > 1.0
    assert done[f"{stage}"].norms == pytest.approx(norms, rel=1e-5)


@pytest.mark.parametrize("stage", UNCLIPPED)
def test_without_clipping_gradients_stay_as_they_are(done: dict[str, Task], stage: int) -> None:
    native, found = done["native unclipped"], done[f"{stage} unclipped"]
    assert exactly(found) == pytest.approx(exactly(native), abs=1e-5)
    assert found.norms == pytest.approx(native.norms, rel=1e-5)


@pytest.mark.parametrize("kind", PRECISIONS)
@pytest.mark.parametrize("stage", STAGES)
def test_resume_is_bit_identical(
    done: dict[str, Task], resumed: dict[str, Task], stage: int, kind: str
) -> None:
    """Three steps, a checkpoint, three more in fresh processes: as if nothing had happened."""
    unbroken, after = done[f"{stage} {kind} unbroken"], resumed[f"{stage} {kind}"]
    before = done[f"{stage} {kind} before"]
    assert before.losses + after.losses == unbroken.losses
    assert after.norms == unbroken.norms[3:]
    weights = after.tensors("weights")
    for name, weight in unbroken.tensors("weights").items():
        assert torch.equal(weight, weights[name]), name


@pytest.mark.parametrize(("reader", "writer"), CROSSINGS)
def test_stages_and_engines_read_each_other(
    done: dict[str, Task], resumed: dict[str, Task], reader: int | str, writer: str
) -> None:
    expected = exactly(done["0 fp32 unbroken"])[3:]
    assert exactly(resumed[f"{reader} from {writer}"]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("stage", STAGES)
def test_bf16_follows_fp32(done: dict[str, Task], stage: int) -> None:
    expected = exactly(done["0 fp32 unbroken"])
    found = exactly(done[f"{stage} bf16 unbroken"])
    assert found == pytest.approx(expected, abs=0.02)
    assert found != expected


@pytest.mark.parametrize(("stage", "kind"), RANDOM)
def test_random_weights_are_the_native_engines(
    done: dict[str, Task], stage: int, kind: str
) -> None:
    """In bf16 too: the weights that are kept are float32 and were never rounded."""
    expected = done["native random"].tensors("weights")
    found = done[f"{stage} {kind} random"].tensors("weights")
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(found[name], weight), name


@pytest.mark.parametrize("stage", STAGES)
def test_logits_are_those_of_the_weights(done: dict[str, Task], stage: int) -> None:
    task = done[f"{stage}"]
    plain = AutoModelForCausalLM.from_pretrained(task.model, dtype=torch.float32)
    untrained = plain.state_dict()["lm_head.weight"].clone()
    plain.load_state_dict(task.tensors("weights"))
    assert not torch.equal(plain.state_dict()["lm_head.weight"], untrained)
    with torch.no_grad():
        expected = plain(global_batch(task.job, plain.config.vocab_size, 1)[0]).logits
    assert torch.allclose(task.tensors("logits")["logits"], expected, atol=1e-5)


@pytest.mark.parametrize(("stage", "kind"), SPOILT)
def test_a_nan_in_one_ranks_loss_moves_no_rank(
    done: dict[str, Task], stage: int, kind: str
) -> None:
    before = done[f"{stage} {kind} unspoilt"].tensors("weights")
    spoilt, after = done[f"{stage} {kind} spoilt, 3"], done[f"{stage} {kind} spoilt, 4"]
    for name, weight in spoilt.tensors("weights").items():
        assert torch.equal(weight, before[name]), name
    assert "the loss is nan (rank 1: loss" in spoilt.skipped[2]
    assert [bool(reason) for reason in after.skipped] == [False, False, True, False]
    assert all(weight.isfinite().all() for weight in after.tensors("weights").values())
    assert any(not torch.equal(w, before[n]) for n, w in after.tensors("weights").items())


def test_three_workers_train_in_two_process_groups(models: dict[str, Path], tmp_path: Path) -> None:
    """No size of this model divides by three, so partitions are padded; and torch.distributed is
    left and joined anew within the same processes, as recovery does."""
    ports = [str(free_port()), str(free_port())]
    known = os.environ.get("PYTHONPATH", "")
    import_path = os.pathsep.join(filter(None, [str(TWO_LIVES.parents[1]), known]))
    program = [sys.executable, str(TWO_LIVES), str(models["tied"]), str(tmp_path), *ports]
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

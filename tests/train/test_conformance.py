"""One suite for both engines: every way in which two workers share out a model's state, against one
process, against each other and against themselves after a resume."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from rayline import checkpoint
from rayline.models.tiny import write_tiny_model
from rayline.parallel.piece import Piece
from rayline.spec import JobSpec
from support.engine_gang import Task, run_gang
from support.engine_rank import global_batch
from support.plain_training import assert_equals_reference, job

pytestmark = pytest.mark.dist

HOST = {"optimizer": "cpu"}
HOST_NATIVE = {"optimizer": "cpu", "activations": "cpu"}
HOST_BOTH = {"optimizer": "cpu", "parameters": "cpu"}
WAYS: dict[str, dict[str, Any]] = {
    "native": {"engine": "native", "zero_stage": 1},
    "native, offload": {"engine": "native", "zero_stage": 1, "offload": HOST_NATIVE},
    "replicas": {"engine": "native", "zero_stage": 0},
    "replicas, offload": {"engine": "native", "zero_stage": 0, "offload": HOST_NATIVE},
    **{f"stage {stage}": {"zero_stage": stage} for stage in range(4)},
    "stage 1, offload": {"zero_stage": 1, "offload": HOST},
    "stage 2, offload": {"zero_stage": 2, "offload": HOST},
    "stage 3, offload": {"zero_stage": 3, "offload": HOST_BOTH},
    "stage 0, pipeline": {"zero_stage": 0, "pipeline": 2},
    "stage 1, pipeline": {"zero_stage": 1, "pipeline": 2},
}
"""Engine deepspeed, unless another is named; two data ranks, unless there is a pipeline."""
UNTIED = ("native", "stage 1", "stage 3", "stage 1, pipeline")
UNCLIPPED = ("stage 0", "stage 1", "stage 3", "stage 1, offload", "stage 3, offload")
BF16 = (
    "native",
    *(f"stage {stage}" for stage in range(4)),
    "stage 1, offload",
    "stage 3, offload",
    "stage 1, pipeline",
)
RANDOM = (
    *(("stage 0", "fp32"), ("stage 1", "bf16"), ("stage 3", "fp32"), ("stage 3", "bf16")),
    ("stage 1, pipeline", "bf16"),
)
SPOILT = (
    *((way, "fp32") for way in WAYS if way.startswith("stage") and way != "stage 1, offload"),
    *((way, "bf16") for way in ("stage 1", "stage 3", "stage 1, offload", "stage 1, pipeline")),
)
CROSSINGS = (
    ("stage 0", "stage 1, offload"),
    ("stage 1", "stage 3"),
    ("stage 2", "native"),
    ("stage 3, offload", "stage 2"),
    ("native", "stage 3"),
    ("native", "replicas"),
    ("replicas", "stage 3"),
    ("native", "stage 1, pipeline"),
    ("stage 1, pipeline", "stage 2"),
)
"""Reader and writer of a checkpoint."""
LION = {
    "kind": "lion",
    "lr": 3e-4,
    "weight_decay": 0.1,
    "groups": [{"match": "*embed*", "lr_scale": 0.5}, {"match": "*norm*", "weight_decay": 0.1}],
}
OTHERWISE: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "lion, groups": ({"optim": LION}, ("stage 1", "stage 3, offload", "stage 1, pipeline")),
    "sgd": ({"optim": {"kind": "sgd", "lr": 3e-2}}, ("stage 2",)),
    "rmsprop": ({"optim": {"kind": "rmsprop", "lr": 3e-4}}, ("stage 3",)),
    "adadelta": ({"optim": {"kind": "adadelta", "lr": 1.0}}, ("stage 1, offload",)),
    "ema": (
        {"ema": {"decay": 0.5, "export": True}},
        ("stage 0", "stage 1", "stage 3", "stage 0, pipeline"),
    ),
    "fp16": (
        {"precision": "fp16"},
        ("stage 0", "stage 1", "stage 2, offload", "stage 3", "stage 1, pipeline"),
    ),
}
"""Another step: what is changed, and the ways that are compared with native in it."""
RECOMPUTED = (
    ("replicas", "full"),
    ("stage 1", "full"),
    ("stage 1", "selective"),
    ("stage 3", "full"),
    ("stage 1, pipeline", "selective"),
)
HALF = 2
"""Step of the checkpoint."""
WHOLE = 4
KEPT = [*((way, "fp32") for way in WAYS), *((way, "bf16") for way in BF16)]


def spec(way: str, **changes: Any) -> JobSpec:
    """Two workers, two microbatches; every row of a batch has another number of targets."""
    settings = {"engine": "deepspeed", **WAYS[way]}
    axis = {"pipeline": settings.pop("pipeline")} if "pipeline" in settings else {"data": 2}
    plan = {**axis, "microbatches": 2, "zero_stage": settings.pop("zero_stage")}
    return job(plan, **{**settings, "guard": {"nonfinite": "skip"}, **changes})


def exactly(task: Task) -> list[float]:
    return [float.fromhex(text) for text in task.losses]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Their largest matrices lie above the 100,000 elements from which stage 3 cuts a weight."""
    root = tmp_path_factory.mktemp("models")
    sizes = {"hidden": 64, "ffn": 2048, "vocab": 2048, "layers": 2}
    return {
        "untied": write_tiny_model(root / "untied", **sizes),
        "tied": write_tiny_model(root / "tied", tied=True, **sizes),
    }


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kept")


def place(kept: Path, way: str, kind: str) -> Path:
    """Where a way keeps its checkpoints."""
    return kept / f"{way}-{kind}".replace(", ", "-").replace(" ", "-")


def run(directory: Path, tasks: dict[str, Task]) -> None:
    """Starting processes costs more than all steps, so there are two gangs only."""
    for stages in (1, 2):
        some = [task for task in tasks.values() if task.job.plan.pipeline == stages]
        run_gang(directory / f"stages-{stages}", some)


@pytest.fixture(scope="module")
def done(
    models: dict[str, Path], kept: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Task]:
    """What begins at step 1."""
    tied, untied = models["tied"], models["untied"]
    unclipped = {**spec("native").optim.model_dump(), "clip_grad_norm": None}
    tasks = {
        f"{way} {kind}": Task(
            spec(way, precision=kind),
            tied,
            last=WHOLE,
            gradients=True,
            save=place(kept, way, kind),
            save_at=HALF,
        )
        for way, kind in KEPT
    }
    for way in UNTIED:
        tasks[f"{way} untied"] = Task(spec(way), untied, last=4, gradients=True)
    for way in ("native", *UNCLIPPED):
        tasks[f"{way} unclipped"] = Task(spec(way, optim=unclipped), untied, last=2)
    for way, kind in (("native", "fp32"), *RANDOM):
        this = spec(way, precision=kind, init="random", seed=5)
        tasks[f"{way} {kind} random"] = Task(this, tied)
    for name, (changes, ways) in OTHERWISE.items():
        for way in ("native", *ways):
            tasks[f"{way} {name}"] = Task(
                spec(way, **changes), tied, last=3, save=place(kept, way, name), save_at=2
            )
    for way, kind in RECOMPUTED:
        tasks[f"{way} {kind}"] = Task(spec(way, recompute=kind), tied, last=3)
    run(tmp_path_factory.mktemp("gang"), tasks)
    return tasks


@pytest.fixture(scope="module")
def resumed(
    done: dict[str, Task],
    models: dict[str, Path],
    kept: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Task]:
    """What goes on from the checkpoints that `done` left, in processes of their own."""
    tied = models["tied"]

    def begun(way: str, kind: str) -> Path:
        return place(kept, way, kind) / f"step-{HALF:08d}"

    tasks = {
        f"{way} {kind}": Task(
            spec(way, precision=kind),
            tied,
            first=HALF + 1,
            last=WHOLE,
            load=begun(way, kind),
        )
        for way, kind in KEPT
    }
    for way, kind in SPOILT:
        first = HALF + 1
        tasks[f"{way} {kind} spoilt"] = Task(
            spec(way, precision=kind),
            tied,
            first=first,
            last=first + 1,
            load=begun(way, kind),
            save=kept / f"spoilt-{way}-{kind}",
            save_at=first,
            fault="loss",
            fault_step=first,
        )
    for reader, writer in CROSSINGS:
        tasks[f"{reader} from {writer}"] = Task(
            spec(reader),
            tied,
            first=HALF + 1,
            last=HALF + 2,
            load=begun(writer, "fp32"),
        )
    for name, (changes, ways) in OTHERWISE.items():
        for way in ways:
            folder = place(kept, way, name) / "step-00000002"
            tasks[f"{way} {name}"] = Task(spec(way, **changes), tied, first=3, last=3, load=folder)
    run(tmp_path_factory.mktemp("resumed"), tasks)
    return tasks


def state(folder: Path) -> dict[str, torch.Tensor]:
    """Every whole tensor of a checkpoint."""
    manifest = checkpoint.read_manifest(folder)
    shapes = {record.tensor: tuple(record.shape) for record in manifest.pieces}
    pieces = [
        Piece(name, shape, (0,) * len(shape), torch.empty(shape), owner=True)
        for name, shape in shapes.items()
    ]
    checkpoint.read_into(folder, manifest, pieces)
    return {piece.tensor: piece.data for piece in pieces}


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize(
    "name", [*(f"{way} fp32" for way in WAYS), *(f"{way} untied" for way in UNTIED)]
)
def test_every_way_equals_one_process(done: dict[str, Task], name: str) -> None:
    """Losses and every gradient, which is asked for before the steps and leaves no trace."""
    assert_equals_reference(done[name])


@pytest.mark.parametrize("way", WAYS)
def test_norms_are_those_before_clipping(done: dict[str, Task], way: str) -> None:
    norms = done["native fp32"].norms
    assert max(norms) > 1.0
    assert done[f"{way} fp32"].norms == pytest.approx(norms, rel=1e-5)


@pytest.mark.parametrize("way", UNCLIPPED)
def test_without_clipping_gradients_stay_as_they_are(done: dict[str, Task], way: str) -> None:
    native, found = done["native unclipped"], done[f"{way} unclipped"]
    assert exactly(found) == pytest.approx(exactly(native), abs=1e-5)
    assert found.norms == pytest.approx(native.norms, rel=1e-5)


@pytest.mark.parametrize("way", [way for way in WAYS if WAYS[way].get("offload")])
def test_offloading_moves_no_number(done: dict[str, Task], way: str) -> None:
    """But for the norm, which DeepSpeed then adds up in another order."""
    near = way.removesuffix(", offload")
    if near in ("native", "replicas"):
        assert done[f"{way} fp32"].losses == done[f"{near} fp32"].losses
        found, expected = done[f"{way} fp32"], done[f"{near} fp32"]
        assert_same(found.tensors("weights"), expected.tensors("weights"))
    assert exactly(done[f"{way} fp32"]) == pytest.approx(exactly(done[f"{near} fp32"]), rel=1e-6)
    if way in BF16:
        there = done[f"{near} bf16"].tensors("gradients")
        assert_same(done[f"{way} bf16"].tensors("gradients"), there)


@pytest.mark.parametrize(("way", "kind"), KEPT)
def test_resume_is_bit_identical(
    done: dict[str, Task], resumed: dict[str, Task], way: str, kind: str
) -> None:
    """A checkpoint half-way, and the second half again in fresh processes: as if nothing had
    happened."""
    unbroken, after = done[f"{way} {kind}"], resumed[f"{way} {kind}"]
    assert after.losses == unbroken.losses[HALF:]
    assert after.norms == unbroken.norms[HALF:]
    assert_same(after.tensors("weights"), unbroken.tensors("weights"))


@pytest.mark.parametrize(
    ("way", "name"), [(way, name) for name, (_, ways) in OTHERWISE.items() for way in ways]
)
def test_another_step_is_the_native_engines(
    done: dict[str, Task], resumed: dict[str, Task], way: str, name: str
) -> None:
    """And goes on bit by bit."""
    expected, found, after = done[f"native {name}"], done[f"{way} {name}"], resumed[f"{way} {name}"]
    sixteen = name == "fp16"
    assert found.skipped == expected.skipped
    assert exactly(found) == pytest.approx(exactly(expected), abs=5e-3 if sixteen else 1e-5)
    assert found.norms == pytest.approx(expected.norms, rel=2e-2 if sixteen else 1e-5)
    weights = found.tensors("weights")
    for key, weight in expected.tensors("weights").items():
        apart = (weights[key] - weight).abs()
        if name.startswith("lion"):
            # It moves a weight by the rate, up or down. Where the mean of its gradients is rounding
            # and no more, so is the sign: of few weights, and by two rates in each step at most.
            assert apart.max() <= 2 * LION["lr"] * len(found.losses) + 1e-6, key
            apart = apart.flatten().sort().values[: -max(1, apart.numel() // 1000)]
        assert torch.all(apart <= (1e-2 if sixteen else 1e-4)), key
    assert after.losses == found.losses[2:]
    assert_same(after.tensors("weights"), weights)


def test_the_running_mean_is_not_the_last_weights(done: dict[str, Task]) -> None:
    mean, last = done["stage 1 ema"].tensors("weights"), done["stage 1 full"].tensors("weights")
    assert done["stage 1 ema"].losses == done["stage 1 full"].losses
    assert all(not torch.equal(mean[name], weight) for name, weight in last.items())


@pytest.mark.parametrize(("way", "kind"), RECOMPUTED)
def test_what_is_recomputed_is_what_was_computed(
    done: dict[str, Task], way: str, kind: str
) -> None:
    assert done[f"{way} {kind}"].losses == done[f"{way} fp32"].losses[:3]


@pytest.mark.parametrize(("reader", "writer"), CROSSINGS)
def test_stages_and_engines_read_each_other(
    done: dict[str, Task], resumed: dict[str, Task], reader: str, writer: str
) -> None:
    expected = exactly(done["native fp32"])[HALF : HALF + 2]
    assert exactly(resumed[f"{reader} from {writer}"]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("way", BF16)
def test_bf16_follows_fp32(done: dict[str, Task], way: str) -> None:
    expected = exactly(done["native fp32"])
    found = exactly(done[f"{way} bf16"])
    assert found == pytest.approx(expected, abs=0.02)
    assert found != expected


@pytest.mark.parametrize(("way", "kind"), RANDOM)
def test_random_weights_are_the_native_engines(done: dict[str, Task], way: str, kind: str) -> None:
    """In bf16 too: the weights that are kept are float32 and were never rounded."""
    expected = done["native fp32 random"].tensors("weights")
    assert_same(done[f"{way} {kind} random"].tensors("weights"), expected)


@pytest.mark.parametrize("way", WAYS)
def test_logits_are_those_of_the_weights(done: dict[str, Task], way: str) -> None:
    task = done[f"{way} fp32"]
    plain = AutoModelForCausalLM.from_pretrained(task.model, dtype=torch.float32)
    untrained = plain.state_dict()["model.embed_tokens.weight"].clone()
    plain.load_state_dict(task.tensors("weights"), strict=False)
    assert not torch.equal(plain.state_dict()["model.embed_tokens.weight"], untrained)
    with torch.no_grad():
        expected = plain(global_batch(task.job, plain.config.vocab_size, 1)[0]).logits
    assert torch.allclose(task.tensors("logits")["logits"], expected, atol=1e-5)


@pytest.mark.parametrize(("way", "kind"), SPOILT)
def test_a_nan_in_one_ranks_loss_moves_no_rank(
    done: dict[str, Task], resumed: dict[str, Task], kept: Path, way: str, kind: str
) -> None:
    """Neither weights nor running means; and the step after it is a usual one."""
    spoilt, step = resumed[f"{way} {kind} spoilt"], HALF
    before = state(place(kept, way, kind) / f"step-{step:08d}")
    assert_same(state(kept / f"spoilt-{way}-{kind}" / f"step-{step + 1:08d}"), before)
    assert [bool(reason) for reason in spoilt.skipped] == [True, False]
    assert "the loss is nan (rank 1: loss" in spoilt.skipped[0]
    weights = spoilt.tensors("weights")
    assert all(weight.isfinite().all() for weight in weights.values())
    assert any(not torch.equal(w, before[f"weight/{n}"]) for n, w in weights.items())

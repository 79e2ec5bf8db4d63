"""A stored checkpoint as a Hugging Face folder, and what is refused before anything is written.
As a universal checkpoint DeepSpeed reads it: test_deepspeed_universal.py."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, MixtralConfig

from rayline.checkpoint.universal import UniversalReader
from rayline.errors import CheckpointError, SpecError
from rayline.models.tiny import byte_tokenizer, write_tiny_model
from rayline.spec import CheckpointSource, JobSpec
from rayline.train.stored_export import export_stored, optimizer_groups
from support.plain_training import job
from support.stored_checkpoints import store

SIZES = {"hidden": 64, "ffn": 96, "layers": 2}


def mixture(folder: Path) -> Path:
    """Two layers of four experts, published expert by expert."""
    config = MixtralConfig(
        num_hidden_layers=2,
        hidden_size=32,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=48,
        num_local_experts=4,
        vocab_size=264,
    )
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    byte_tokenizer(264, 64).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {
        "llama": write_tiny_model(root / "llama", **SIZES),
        "tied": write_tiny_model(root / "tied", tied=True, **SIZES),
        "mixture": mixture(root / "mixture"),
    }


def job_of(model: Path, folder: Path, **changes: object) -> JobSpec:
    return job({}, model={"directory": str(model)}, output_dir=str(folder / "run"), **changes)


def logits(model: torch.nn.Module) -> torch.Tensor:
    ids = torch.randint(0, 264, (2, 12), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=ids, use_cache=False).logits
    return found


@pytest.mark.parametrize("name", ["llama", "tied", "mixture"])
def test_transformers_loads_the_weights_of_the_checkpoint(
    models: dict[str, Path], name: str, tmp_path: Path
) -> None:
    model = models[name]
    spec = job_of(model, tmp_path)
    stored = store(spec)
    told: list[tuple[int, int]] = []
    outcome = export_stored(
        CheckpointSource.of_job(spec),
        model,
        tmp_path / "out",
        "huggingface",
        observe=lambda done, total: told.append((done, total)),
    )
    expected = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    for parameter_name, parameter in expected.named_parameters():
        parameter.data.copy_(stored[f"weight/{parameter_name}"])
    loaded, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", dtype="auto", output_loading_info=True
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert loaded.dtype == torch.float32
    assert torch.equal(logits(loaded), logits(expected))
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("a b")["input_ids"]
    assert outcome.parameters == sum(p.numel() for p in expected.parameters())
    assert (outcome.step, outcome.made, outcome.skipped) == (2, True, [])
    assert told[-1] == (len(told), len(told)) == (len(list(expected.parameters())),) * 2
    assert not (tmp_path / "out.partial").exists()


def test_the_running_mean_is_exported_where_the_job_exports_it(
    models: dict[str, Path], tmp_path: Path
) -> None:
    spec = job_of(models["llama"], tmp_path, ema={"decay": 0.9, "export": True})
    stored = store(spec)
    export_stored(CheckpointSource.of_job(spec), models["llama"], tmp_path / "out", "huggingface")
    written = load_file(tmp_path / "out" / "model.safetensors")
    name = "model.norm.weight"
    assert torch.equal(written[name], stored[f"optimizer/average/{name}"])


def test_the_same_export_is_made_once_and_no_other_replaces_it(
    models: dict[str, Path], tmp_path: Path
) -> None:
    spec, out = job_of(models["llama"], tmp_path), tmp_path / "out"
    store(spec)
    source = CheckpointSource.of_job(spec)
    out.mkdir()
    assert export_stored(source, models["llama"], out, "huggingface", dry_run=True).made
    assert list(out.iterdir()) == []
    assert export_stored(source, models["llama"], out, "huggingface").made
    before = {file: file.stat().st_mtime_ns for file in out.iterdir()}
    assert not export_stored(source, models["llama"], out, "huggingface").made
    store(spec, step=3, seed=1)
    for other in ("huggingface", "universal"):
        with pytest.raises(SpecError, match=r"to: holds another export"):
            export_stored(source, models["llama"], out, other)  # type: ignore[arg-type]
    assert {file: file.stat().st_mtime_ns for file in out.iterdir()} == before
    assert not export_stored(
        CheckpointSource(spec, source.root, step=2), models["llama"], out, "huggingface"
    ).made
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(SpecError, match=r"to: holds something else"):
        export_stored(source, models["llama"], file, "huggingface")


def test_a_damaged_checkpoint_is_passed_over_but_not_where_it_is_asked_for(
    models: dict[str, Path], tmp_path: Path
) -> None:
    spec = job_of(models["llama"], tmp_path)
    store(spec, step=2)
    store(spec, step=3)
    root = Path(CheckpointSource.of_job(spec).root)
    shard = root / "step-00000003" / "rank-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    outcome = export_stored(
        CheckpointSource.of_job(spec), models["llama"], tmp_path / "out", "universal"
    )
    assert outcome.step == 2
    assert "step-00000003" in outcome.skipped[0]
    for step, problem in (
        (3, "no intact checkpoint"),
        (4, r"(?s)no checkpoint of this step.*2, 3"),
    ):
        with pytest.raises(CheckpointError, match=problem):
            export_stored(
                CheckpointSource(spec, str(root), step),
                models["llama"],
                tmp_path / "new",
                "universal",
            )
    assert not list(tmp_path.glob("new*"))


def test_a_checkpoint_of_another_model_is_refused(models: dict[str, Path], tmp_path: Path) -> None:
    spec = job_of(models["llama"], tmp_path)
    store(spec)
    with pytest.raises(CheckpointError, match="tied_embeddings"):
        export_stored(
            CheckpointSource.of_job(spec), models["tied"], tmp_path / "out", "huggingface"
        )


def test_without_adams_means_there_is_no_universal_checkpoint(
    models: dict[str, Path], tmp_path: Path
) -> None:
    source = CheckpointSource.of_job(job_of(models["llama"], tmp_path))
    lion = job_of(models["llama"], tmp_path, optim={"kind": "lion", "lr": 1e-3})
    with pytest.raises(SpecError, match=r"(?s)optim\.kind.*adamw, lamb"):
        export_stored(CheckpointSource.of_job(lion), models["llama"], tmp_path / "out", "universal")
    store(lion.changed({"optim": {"kind": "adamw", "lr": 1e-3}}))
    ema = job_of(models["llama"], tmp_path, ema={"export": True})
    with pytest.raises(CheckpointError, match=r"optimizer/average/.*not in the checkpoint"):
        export_stored(
            CheckpointSource.of_job(ema), models["llama"], tmp_path / "out", "huggingface"
        )
    assert export_stored(source, models["llama"], tmp_path / "out", "universal").made
    assert UniversalReader(tmp_path / "out").progress("model.norm.weight").samples == 16


def test_a_folder_says_itself_which_job_it_is_of(models: dict[str, Path], tmp_path: Path) -> None:
    spec = job_of(models["llama"], tmp_path)
    store(spec)
    moved = tmp_path / "elsewhere"
    (tmp_path / "run").rename(moved)
    for folder, step in (
        (moved, None),
        (moved / "checkpoints", None),
        (moved / "checkpoints" / "step-00000002", 2),
    ):
        found = CheckpointSource.of_folder(folder, ["seed=3"])
        assert found.root == str(moved / "checkpoints")
        assert found.step == step
        assert found.job == spec.changed({"seed": 3})
    (moved / "spec.yaml").unlink()
    with pytest.raises(SpecError, match=r"source: no spec\.yaml lies with the checkpoints"):
        CheckpointSource.of_folder(moved)


def test_groups_are_in_the_models_order_and_two_at_least() -> None:
    shapes = {"a": (2, 2), "a.norm": (2,), "b": (2, 2)}
    decays = job({}, optim={"lr": 1e-3, "weight_decay": 0.1})
    assert [g.weight_decay for g in optimizer_groups(decays, shapes, 0.5)] == [0.1, 0.0]
    plain = job({}, optim={"lr": 1e-3, "groups": [{"match": "b", "lr_scale": 0.5}]})
    assert [g.lr for g in optimizer_groups(plain, shapes, 0.5)] == [0.5, 0.25]
    same = optimizer_groups(job({}, optim={"lr": 1e-3}), shapes, 0.5)
    assert same[0] == same[1]
    assert len(same) == 2


def test_what_an_export_is_made_of_is_written_into_it(
    models: dict[str, Path], tmp_path: Path
) -> None:
    spec = job_of(models["llama"], tmp_path)
    store(spec)
    export_stored(CheckpointSource.of_job(spec), models["llama"], tmp_path / "out", "universal")
    told = json.loads((tmp_path / "out" / "rayline-export.json").read_text())
    assert told["format"] == "universal"
    assert told["spec_fingerprint"] == spec.fingerprint()

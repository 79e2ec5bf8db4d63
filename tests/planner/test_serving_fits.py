"""What would fit where something does not: changes of one field, as values."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rayline.errors import SpecError
from rayline.planner import (
    GPU_MEMORY_GIB,
    ServedModel,
    fitting_advice,
    gpu_memory_bytes,
    plan_deployment,
    plan_serving,
    read_served_model,
    what_fits,
)
from rayline.spec import EngineSpec, ModelShape, ServeSpec

GIB = 2**30
LLAMA_8B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "dtype": "bfloat16",
}
MODEL = ServedModel.from_config(LLAMA_8B, ModelShape.from_config(LLAMA_8B))


def overrides(engine: EngineSpec, memory_bytes: int | None) -> list[str]:
    device = "cpu" if memory_bytes is None else "gpu"
    return [fit.override for fit in what_fits(engine, MODEL, device, memory_bytes)]


def test_each_change_that_is_told_makes_it_fit():
    engine = EngineSpec(max_model_len=32768, gpu="L4", max_num_seqs=16)
    memory = gpu_memory_bytes("L4")
    assert memory is not None
    assert not plan_serving(engine, MODEL, "gpu", memory).fits
    fits = what_fits(engine, MODEL, "gpu", memory)
    assert len(fits) >= 4
    for fit in fits:
        field, value = fit.override.removeprefix("engine.").split("=")
        changed = engine.changed({field: json.loads(value) if value[0].isdigit() else value})
        has = gpu_memory_bytes(changed.gpu or "")
        plan = plan_serving(changed, MODEL, "gpu", has)
        assert plan.fits
        assert (plan.sequences, plan.sequence_tokens) == (fit.sequences, fit.sequence_tokens)


def test_a_model_too_large_for_one_gpu_is_told_how_many():
    config = {**LLAMA_8B, "num_hidden_layers": 80, "hidden_size": 8192, "num_attention_heads": 64}
    config["intermediate_size"] = 28672
    large = ServedModel.from_config(config, ModelShape.from_config(config))
    fits = what_fits(EngineSpec(gpu="H100"), large, "gpu", gpu_memory_bytes("H100"))
    # 65.7 GiB of weights a device, and one cache entry beside.
    assert [fit.override for fit in fits] == ["engine.tensor_parallel_size=2", "engine.gpu=B200"]


def test_on_cpu_a_larger_cache_or_a_shorter_limit_is_told():
    found = overrides(EngineSpec(max_model_len=8192, kv_cache_gib=1), None)
    # 256 KiB a token in float32: 2 GiB for 8,192, and one block beside.
    assert "engine.kv_cache_gib=2.25" in found
    assert "engine.max_model_len=3840" in found
    assert not any("gpu" in override for override in found)


def test_nothing_is_told_in_words_of_their_own():
    assert "smaller model" in fitting_advice([])
    fits = what_fits(EngineSpec(max_model_len=8192), MODEL, "cpu")
    assert fitting_advice(fits).startswith("--set engine.max_model_len=3840 (one sequence of 3840")


@pytest.mark.parametrize("kind", sorted(GPU_MEMORY_GIB))
def test_a_gpu_has_less_than_its_makers_figure(kind):
    size = gpu_memory_bytes(kind)
    assert size is not None
    marketed = {"H100": 80, "A100-80G": 80, "A100": 40, "H200": 141, "L4": 24, "T4": 16}
    if kind in marketed:
        assert 0.88 * marketed[kind] * 10**9 < size < marketed[kind] * GIB


def test_the_folder_says_how_large_the_weights_are(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_8B))
    counted = read_served_model(tmp_path)
    assert counted.file_bytes == 0
    (tmp_path / "model-1.safetensors").write_bytes(bytes(1000))
    (tmp_path / "model-2.safetensors").write_bytes(bytes(500))
    stored = read_served_model(tmp_path)
    assert stored.file_bytes == 1500
    assert stored.weight_bytes(2, 16) == 1500
    assert stored.weight_bytes(4, 32) == 3000


def test_a_deployment_is_planned_for_what_it_names(tmp_path: Path) -> None:
    def spec(**fields: object) -> ServeSpec:
        return ServeSpec.parse({"name": "bot", "model": {"directory": str(tmp_path)}, **fields})

    on_cpu = plan_deployment(spec(), MODEL, host_bytes=64 * GIB)
    assert (on_cpu.replica.device, on_cpu.fits) == ("cpu", ())
    on_gpu = plan_deployment(spec(engine={"gpu": "L4", "max_model_len": 65536}), MODEL)
    assert on_gpu.replica.device == "gpu"
    assert on_gpu.fits
    unknown = plan_deployment(spec(device="gpu"), MODEL)
    assert unknown.replica.memory_bytes is None
    assert unknown.fits == ()
    with pytest.raises(SpecError, match="runs on CPU"):
        plan_deployment(spec(device="cpu", engine={"gpu": "L4"}), MODEL)

"""A served model's memory against what vLLM itself reported, and the limits that follow from it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayline.errors import SpecError
from rayline.planner import ServedModel, plan_serving
from rayline.planner.serving import ServingPlan
from rayline.spec import EngineSpec, ModelShape

GIB = 2**30
H100_BYTES = int(79.19 * GIB)


def model(**config: Any) -> ServedModel:
    tree = {"dtype": "bfloat16", "max_position_embeddings": 131072, **config}
    return ServedModel.from_config(tree, ModelShape.from_config(tree))


def llama(
    layers: int, hidden: int, heads: int, kv_heads: int, ffn: int, vocab: int, **more: Any
) -> ServedModel:
    return model(
        **{
            "architectures": ["LlamaForCausalLM"],
            "num_hidden_layers": layers,
            "hidden_size": hidden,
            "num_attention_heads": heads,
            "num_key_value_heads": kv_heads,
            "intermediate_size": ffn,
            "vocab_size": vocab,
            **more,
        }
    )


QWEN2, QWEN3 = ["Qwen2ForCausalLM"], ["Qwen3ForCausalLM"]
TIED = {"tie_word_embeddings": True}
MODELS = {
    "Llama-3.1-8B": llama(32, 4096, 32, 8, 14336, 128256),
    "Qwen2.5-7B": llama(28, 3584, 28, 4, 18944, 152064, architectures=QWEN2),
    "Qwen3-8B": llama(36, 4096, 32, 8, 12288, 151936, architectures=QWEN3, head_dim=128),
    "CodeLlama-7b": llama(32, 4096, 32, 32, 11008, 32016),
    "granite-3.1-8b": llama(40, 4096, 32, 8, 12800, 49155, **TIED),
    "granite-3.1-2b": llama(40, 2048, 32, 8, 8192, 49155, **TIED),
    "phi-4": llama(40, 5120, 40, 10, 17920, 100352),
    "gemma-2-9b": llama(42, 3584, 16, 8, 14336, 256000, head_dim=256, **TIED),
    "Qwen3-30B-A3B": llama(
        *(48, 2048, 32, 4, 6144, 151936),
        architectures=["Qwen3MoeForCausalLM"],
        head_dim=128,
        num_experts=128,
        num_experts_per_tok=8,
        moe_intermediate_size=768,
    ),
    "Mixtral-8x7B": llama(
        *(32, 4096, 32, 8, 14336, 32000), num_local_experts=8, num_experts_per_tok=2
    ),
}
# GiB that vLLM 0.19 logged on H100 (80 GB) with gpu_memory_utilization 0.95, 8,192 batched tokens
# and 1,024 sequences: weights, the largest step, KV cache. llm-d-planner, accuracy report v0.19.0.
REPORTED = [
    ("Llama-3.1-8B", 1, 14.99, 1.89, 58.11),
    ("Llama-3.1-8B", 2, 7.51, 1.89, None),
    ("Llama-3.1-8B", 4, 3.77, 1.89, None),
    ("Qwen2.5-7B", 1, 14.25, 2.21, 58.53),
    ("Qwen2.5-7B", 2, 7.12, 2.21, None),
    ("Qwen2.5-7B", 4, 3.55, 2.21, None),
    ("Qwen3-8B", 1, 15.27, 2.21, None),
    ("CodeLlama-7b", 1, None, 0.77, None),
    ("granite-3.1-8b", 1, None, 0.85, None),
    ("granite-3.1-2b", 1, None, 0.75, None),
    ("phi-4", 1, None, 1.52, None),
    ("gemma-2-9b", 1, 17.22, 3.65, None),
    ("Qwen3-30B-A3B", 1, None, 2.68, None),
    ("Mixtral-8x7B", 2, None, 1.21, None),
]
CONTEXT_GIB = {1: 0.2637, 2: 2.0508, 4: 2.0508}
"""What the planner takes for CUDA and NCCL; 0.24 to 0.27 and 2.06 to 2.17 GiB were reported."""


def on_h100(name: str, tensor: int = 1, **engine: Any) -> ServingPlan:
    fields = {
        "max_model_len": 8192,
        "max_num_seqs": 1024,
        "max_num_batched_tokens": 8192,
        "tensor_parallel_size": tensor,
        "gpu_memory_utilization": 0.95,
        # That version counted captured graphs on top of what it was allowed.
        "enforce_eager": True,
    }
    return plan_serving(EngineSpec.parse({**fields, **engine}), MODELS[name], "gpu", H100_BYTES)


@pytest.mark.parametrize(("name", "tensor", "weights", "step", "cache"), REPORTED)
def test_memory_is_what_vllm_reports(name, tensor, weights, step, cache):
    plan = on_h100(name, tensor)
    if weights is not None:
        assert plan.weights_bytes / GIB == pytest.approx(weights, rel=0.01)
    planned_step = plan.reserve_bytes / GIB - CONTEXT_GIB[tensor]
    assert planned_step == pytest.approx(step, rel=0.11)
    if cache is not None:
        assert plan.cache_bytes / GIB == pytest.approx(cache, rel=0.002)


def test_the_tokens_of_the_cache_are_vllms_to_the_token():
    # "GPU KV cache size: 476,016 tokens", of Llama 3.1 8B.
    plan = on_h100("Llama-3.1-8B")
    assert plan.layout.token_bytes == 128 * 1024
    assert plan.layout.usable_blocks(plan.cache_bytes) * 16 == pytest.approx(476_016, abs=500)
    half = on_h100("Llama-3.1-8B", kv_cache_dtype="fp8")
    assert half.layout.usable_blocks(half.cache_bytes) * 16 == pytest.approx(952_032, abs=1000)


def test_float32_and_fp8_weights_are_what_vllm_reports():
    assert on_h100("Llama-3.1-8B", dtype="float32").weights_bytes / GIB == pytest.approx(
        29.98, rel=0.01
    )
    fp8 = on_h100("Llama-3.1-8B", quantization="fp8_per_tensor").weights_bytes / GIB
    assert fp8 == pytest.approx(8.49, rel=0.01)


def test_on_cpu_the_cache_is_what_the_spec_says_and_workers_share_the_nodes_memory():
    tiny = llama(2, 128, 4, 2, 256, 264, dtype="float32")
    engine = EngineSpec(max_model_len=512, kv_cache_gib=0.0625)
    plan = plan_serving(engine, tiny, "cpu", 24 * GIB)
    # vLLM 0.32 on CPU: 512 blocks of 128 tokens in 64 MiB, one of which it keeps to itself.
    assert plan.layout.block_bytes == 131072
    assert plan.layout.usable_blocks(plan.cache_bytes) == 511
    assert plan.sequences == 511 / 4
    two = plan_serving(EngineSpec(kv_cache_gib=4, tensor_parallel_size=2), tiny, "cpu", 24 * GIB)
    assert two.layout.block_bytes == 65536
    assert two.replicas(0) == 24 * GIB // (2 * two.total_bytes) == 2


@pytest.mark.parametrize(
    ("engine", "field", "allowed"),
    [
        ({"tensor_parallel_size": 3}, "engine.tensor_parallel_size", "1, 2, 4, 8, 16, 32"),
        ({"pipeline_parallel_size": 33}, "engine.pipeline_parallel_size", "1..32"),
        ({"max_model_len": 131073}, "engine.max_model_len", "16..131072"),
        ({"quantization": "gptq"}, "engine.quantization", "fp8_per_tensor"),
    ],
)
def test_what_the_model_does_not_allow_is_refused_with_what_it_does(engine, field, allowed):
    with pytest.raises(SpecError) as refused:
        plan_serving(EngineSpec.parse(engine), MODELS["Llama-3.1-8B"], "gpu", H100_BYTES)
    assert refused.value.subject == field
    assert allowed in refused.value.allowed


def test_stretched_positions_are_left_to_vllm():
    scaled = llama(2, 64, 4, 2, 96, 264, max_position_embeddings=64, rope_scaling={"type": "yarn"})
    assert plan_serving(EngineSpec(max_model_len=4096), scaled, "cpu").sequences >= 1


@given(
    layers=st.integers(1, 8),
    kv_heads=st.sampled_from([1, 2, 4]),
    tokens=st.integers(16, 4096),
    gib=st.floats(0.001, 4),
)
def test_what_is_said_to_fit_fits_and_one_token_more_does_not(layers, kv_heads, tokens, gib):
    served = llama(layers, 128, 4, kv_heads, 256, 264)
    plan = plan_serving(EngineSpec(max_model_len=tokens, kv_cache_gib=gib), served, "cpu")
    layout = plan.layout
    for sequences, longest in ((1, plan.longest_tokens), (32, plan.concurrent_tokens)):
        assert longest <= tokens
        if longest:
            assert layout.blocks(longest) * sequences <= layout.usable_blocks(plan.cache_bytes)
        if longest < tokens:
            more = layout.blocks(longest + 1) * sequences
            assert more > layout.usable_blocks(plan.cache_bytes)
    assert plan.fits is (plan.longest_tokens == tokens)


@given(tensor=st.sampled_from([1, 2, 4, 8]), pipeline=st.sampled_from([1, 2, 4]))
def test_devices_share_out_weights_and_cache(tensor, pipeline):
    engine = EngineSpec(tensor_parallel_size=tensor, pipeline_parallel_size=pipeline)
    plan = plan_serving(engine, MODELS["Llama-3.1-8B"], "gpu", H100_BYTES)
    whole = plan_serving(EngineSpec(), MODELS["Llama-3.1-8B"], "gpu", H100_BYTES)
    assert plan.layout.token_bytes * tensor * pipeline == whole.layout.token_bytes
    assert whole.weights_bytes <= plan.weights_bytes * tensor * pipeline * 1.001
    assert plan.weights_bytes <= whole.weights_bytes / tensor / pipeline + 2 * GIB


def test_a_draft_model_takes_its_own_share():
    draft = llama(2, 1024, 16, 8, 4096, 128256, head_dim=128)
    alone = on_h100("Llama-3.1-8B")
    engine = EngineSpec(
        max_model_len=8192,
        max_num_seqs=1024,
        max_num_batched_tokens=8192,
        gpu_memory_utilization=0.95,
        enforce_eager=True,
    )
    both = plan_serving(engine, MODELS["Llama-3.1-8B"], "gpu", H100_BYTES, draft)
    assert both.weights_bytes > alone.weights_bytes
    assert both.layout.token_bytes == alone.layout.token_bytes * 34 // 32


def test_places_for_adapters_are_reserved():
    without, with_four = on_h100("Llama-3.1-8B"), on_h100("Llama-3.1-8B", max_adapters=4)
    # Two factors of rank 16 in bfloat16 for each of a layer's seven matrices.
    each = 16 * 2 * 32 * (4 * 4096 + 2 * 4096 + 2 * 1024 + 3 * (4096 + 14336))
    assert with_four.reserve_bytes - without.reserve_bytes == 4 * each
    assert each / GIB == pytest.approx(0.08, rel=0.05)


def test_a_replica_larger_than_a_node_is_held_by_none():
    plan = plan_serving(
        EngineSpec(tensor_parallel_size=16), MODELS["Llama-3.1-8B"], "gpu", H100_BYTES
    )
    assert plan.replicas(8) == 0
    assert plan_serving(EngineSpec(), MODELS["Llama-3.1-8B"], "gpu").replicas(8) is None

"""Pages of the KV cache for every kind of attention, against what vLLM 0.32 reported on CPU of tiny
models with 64 MiB of cache and a limit of 512 tokens: its number of blocks, and its "maximum
concurrency", which counts the one block, too, that it never gives out."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rayline.planner import CacheLayout, CacheShape
from rayline.spec import ModelShape

MIB = 2**20
SIZES = {
    "hidden_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 256,
    "vocab_size": 264,
}


def shape(**config: Any) -> CacheShape:
    tree = {**SIZES, "num_hidden_layers": 4, **config}
    return CacheShape.from_config(tree, ModelShape.from_config(tree))


def layout(cache: CacheShape, **changes: int) -> CacheLayout:
    sizes = {"tensor": 1, "pipeline": 1, "value_bytes": 4, "block_tokens": 128}
    return CacheLayout(shape=cache, **{**sizes, "step_tokens": 2048, **changes})


FULL_AND_WINDOWS = ["full_attention", *["sliding_attention"] * 3]
WINDOWS_AROUND = [*["sliding_attention"] * 2, "full_attention", *["sliding_attention"] * 2]
REPORTED = {
    "Llama, 2 layers": (shape(num_hidden_layers=2), 4, 512, 128.0),
    "Llama, 2 layers and a drafted one": (shape(num_hidden_layers=3), 4, 341, 85.25),
    "Mistral with a window": (shape(model_type="mistral", sliding_window=64), 4, 256, 51.2),
    "Qwen2, one full layer in four": (
        shape(layer_types=FULL_AND_WINDOWS, sliding_window=64),
        4,
        1024,
        1024 / 19,
    ),
    "Gemma 3, one full layer in five": (
        shape(num_hidden_layers=5, layer_types=WINDOWS_AROUND, sliding_window=64),
        4,
        1024,
        1024 / 24,
    ),
}


@pytest.mark.parametrize("name", REPORTED)
def test_blocks_and_concurrency_are_vllms(name: str) -> None:
    cache, value_bytes, blocks, concurrency = REPORTED[name]
    laid_out = layout(cache, value_bytes=value_bytes)
    assert 64 * MIB // laid_out.block_bytes == blocks
    assert laid_out.usable_blocks(64 * MIB) == blocks - 1
    assert blocks / laid_out.blocks(512) == pytest.approx(concurrency)


@pytest.mark.parametrize(
    ("config", "full", "windows", "other"),
    [
        ({}, 4, 0, 0),
        ({"sliding_window": None}, 4, 0, 0),
        ({"sliding_window": 64}, 0, 4, 0),
        ({"sliding_window": 64, "use_sliding_window": False}, 4, 0, 0),
        ({"sliding_window": 64, "use_sliding_window": True, "max_window_layers": 3}, 3, 1, 0),
        ({"sliding_window": 64, "sliding_window_pattern": 2}, 2, 2, 0),
        ({"sliding_window": 64, "model_type": "gemma2"}, 2, 2, 0),
        ({"layer_types": ["linear_attention"] * 3 + ["full_attention"]}, 1, 0, 3),
        ({"layer_types": FULL_AND_WINDOWS, "sliding_window": 64}, 1, 3, 0),
        ({"layer_types": ["chunked_attention"] * 4, "attention_chunk_size": 64}, 0, 4, 0),
        ({"model_type": "bert"}, 0, 0, 0),
    ],
)
def test_each_layer_is_of_its_kind(config, full, windows, other) -> None:
    found = shape(**config)
    assert (found.full_layers, found.window_layers, found.other_layers) == (full, windows, other)
    assert (found.window_tokens == 64) is bool(windows)


def test_a_text_model_within_another_is_looked_into() -> None:
    inner = {**SIZES, "num_hidden_layers": 4, "sliding_window": 64}
    found = CacheShape.from_config({"text_config": inner}, ModelShape.from_config(inner))
    assert found.window_layers == 4


def test_latent_attention_keeps_one_vector_whole_on_every_rank() -> None:
    # DeepSeek-V3: 61 layers of 512 + 64 numbers, 68.6 KiB a token in bfloat16.
    config = {
        "num_hidden_layers": 61,
        "hidden_size": 7168,
        "num_attention_heads": 128,
        "num_key_value_heads": 128,
        "intermediate_size": 18432,
        "vocab_size": 129280,
        "kv_lora_rank": 512,
        "qk_rope_head_dim": 64,
    }
    found = CacheShape.from_config(config, ModelShape.from_config(config))
    assert (found.heads, found.values_per_head) == (1, 576)
    assert layout(found, value_bytes=2).token_bytes == 61 * 576 * 2
    assert layout(found, value_bytes=2, tensor=8).token_bytes == 61 * 576 * 2


def test_ranks_share_heads_out_until_each_has_one() -> None:
    cache = shape(num_key_value_heads=2)
    sizes = [layout(cache, tensor=tensor).token_bytes for tensor in (1, 2, 4)]
    assert sizes == [sizes[0], sizes[0] // 2, sizes[0] // 2]


def test_an_encoder_keeps_nothing() -> None:
    laid_out = layout(shape(model_type="bert"))
    assert laid_out.block_bytes == 0
    assert laid_out.sequences(0, 512) == float("inf")
    assert laid_out.longest(0, 32, 512) == 512


@given(
    tokens=st.integers(1, 10_000),
    more=st.integers(0, 5_000),
    window=st.integers(1, 4_096),
    block=st.sampled_from([16, 32, 128]),
)
def test_a_window_never_takes_more_than_full_attention_and_one_block(tokens, more, window, block):
    full = layout(shape(), block_tokens=block)
    windowed = layout(shape(sliding_window=window), block_tokens=block, step_tokens=256)
    assert windowed.blocks(tokens) <= full.blocks(tokens) + 1
    assert windowed.blocks(tokens) <= windowed.blocks(tokens + more)
    assert windowed.blocks(10**6) <= (window + 256) // block + 2

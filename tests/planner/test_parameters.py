"""The count of parameters against the models themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    Qwen3MoeConfig,
)

from rayline.planner import count_by_component, count_parameters
from rayline.spec import ModelShape

SMOLLM2 = {
    "num_hidden_layers": 30,
    "hidden_size": 576,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}


def true_count(config: PretrainedConfig) -> tuple[ModelShape, int]:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shape = ModelShape.from_config({**config.to_dict(), "architectures": [type(model).__name__]})
    return shape, sum(parameter.numel() for parameter in model.parameters())


@settings(deadline=None, max_examples=40)
@given(
    kind=st.sampled_from(
        [LlamaConfig, MistralConfig, MixtralConfig, Qwen2Config, Qwen3Config, Qwen3MoeConfig]
    ),
    layers=st.integers(1, 3),
    groups=st.integers(1, 3),
    kv_heads=st.integers(1, 3),
    head_dim=st.sampled_from([8, 16]),
    width=st.integers(1, 12),
    ffn=st.integers(1, 200),
    vocab=st.integers(8, 500),
    tied=st.booleans(),
)
def test_the_count_is_the_models_own(kind: Any, **sizes: Any) -> None:
    heads = sizes["groups"] * sizes["kv_heads"]
    # Experts narrower than the config's feed-forward.
    narrow = {"num_experts": 3, "moe_intermediate_size": 5} if kind is Qwen3MoeConfig else {}
    config = kind(
        **narrow,
        num_hidden_layers=sizes["layers"],
        hidden_size=sizes["width"] * heads,
        num_attention_heads=heads,
        num_key_value_heads=sizes["kv_heads"],
        head_dim=sizes["head_dim"],
        intermediate_size=sizes["ffn"],
        vocab_size=sizes["vocab"],
        tie_word_embeddings=sizes["tied"],
        pad_token_id=None,
        bos_token_id=0,
        eos_token_id=0,
    )
    shape, count = true_count(config)
    assert count_parameters(shape) == count


def test_smollm2_has_134_million() -> None:
    shape, count = true_count(LlamaConfig(**SMOLLM2))
    assert count_parameters(shape) == count == 134_515_008


@pytest.mark.parametrize("tied", [True, False])
def test_the_parts_make_the_whole(tied: bool) -> None:
    shape = ModelShape.from_config({**SMOLLM2, "tie_word_embeddings": tied})
    parts = count_by_component(shape)

    assert parts.head == (0 if tied else parts.embedding)
    total = parts.embedding + parts.head + parts.final_norm + 30 * parts.layer
    assert total == count_parameters(shape)

"""Operations per token: against figures worked out by hand, and against what torch counts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MixtralConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from rayline.planner import (
    device_peak_flops_per_s,
    forward_flops_per_token,
    matrix_parameters_per_token,
    model_flops_per_token,
)
from rayline.spec import ModelShape

LLAMA_3_8B = {
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
}
MIXTRAL_8X7B = {
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 32000,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}
SMOLLM2_135M = {
    "num_hidden_layers": 30,
    "hidden_size": 576,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "intermediate_size": 1536,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny products on several threads mostly wait for one another."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("config", "sequence_tokens", "matrices", "flops"),
    [
        # 32 x (4096 x (2 x 4096 + 2 x 1024) + 3 x 4096 x 14336) + 128256 x 4096: the published
        # 8 030 261 248 parameters less the embedding's and the 65 norms'. Then 6 x that, and
        # 12 x 32 x 4096 x 8192.
        (LLAMA_3_8B, 8192, 7_504_658_432, 57_912_852_480),
        # Two of eight experts, and the router's 8 x 4096: of 46.7 billion parameters 12.7 billion
        # are met.
        (MIXTRAL_8X7B, 4096, 12_748_587_008, 82_933_972_992),
        # The head is the embedding's matrix, and is multiplied with all the same: the 134 515 008
        # parameters, once, less the 61 norms'.
        (SMOLLM2_135M, 2048, 134_479_872, 1_231_552_512),
    ],
)
def test_known_models(
    config: dict[str, Any], sequence_tokens: int, matrices: int, flops: int
) -> None:
    shape = ModelShape.from_config(config)
    assert matrix_parameters_per_token(shape) == matrices
    assert model_flops_per_token(shape, sequence_tokens) == flops
    heads = 12 * shape.layers * shape.heads * shape.head_dim * sequence_tokens
    assert flops == 6 * matrices + heads


def counted_forward(config: PretrainedConfig, tokens: int) -> tuple[ModelShape, int]:
    """What torch counts in one real forward pass over one sequence."""
    config._attn_implementation = "eager"
    config._experts_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config).eval()
    ids = torch.randint(0, config.vocab_size, (1, tokens))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=ids, use_cache=False)
    shape = ModelShape.from_config({**config.to_dict(), "architectures": [type(model).__name__]})
    return shape, counter.get_total_flops()


@settings(deadline=None, max_examples=20)
@given(
    kind=st.sampled_from([LlamaConfig, MixtralConfig, Qwen2Config, Qwen3Config]),
    layers=st.integers(1, 3),
    groups=st.integers(1, 3),
    kv_heads=st.integers(1, 3),
    head_dim=st.sampled_from([8, 16]),
    width=st.integers(1, 4),
    ffn=st.integers(1, 64),
    vocab=st.integers(8, 99),
    tied=st.booleans(),
    experts=st.integers(1, 4),
    tokens=st.integers(2, 9),
)
def test_torch_counts_the_same(kind: Any, **sizes: Any) -> None:
    heads = sizes["groups"] * sizes["kv_heads"]
    routed = {}
    if kind is MixtralConfig:
        routed = {"num_local_experts": 4, "num_experts_per_tok": sizes["experts"]}
    config = kind(
        num_hidden_layers=sizes["layers"],
        hidden_size=sizes["width"] * heads * 2,
        num_attention_heads=heads,
        num_key_value_heads=sizes["kv_heads"],
        head_dim=sizes["head_dim"],
        intermediate_size=sizes["ffn"],
        vocab_size=sizes["vocab"],
        tie_word_embeddings=sizes["tied"],
        pad_token_id=None,
        bos_token_id=0,
        eos_token_id=0,
        **routed,
    )
    tokens = sizes["tokens"]
    shape, counted = counted_forward(config, tokens)
    assert counted == tokens * forward_flops_per_token(shape, tokens)


@pytest.mark.parametrize(
    ("name", "bf16", "fp32"),
    [
        ("NVIDIA H100 80GB HBM3", 989.5e12, 67e12),
        ("NVIDIA H100 PCIe", 756e12, 51e12),
        ("NVIDIA H100 NVL", 835.5e12, 60e12),
        ("NVIDIA H200", 989.5e12, 67e12),
        ("NVIDIA A100-SXM4-80GB", 312e12, 19.5e12),
        ("NVIDIA A100 80GB PCIe", 312e12, 19.5e12),
        ("NVIDIA B200", 2250e12, 75e12),
        ("NVIDIA L40S", 362e12, 91.6e12),
        ("NVIDIA L4", 121e12, 30.3e12),
        ("NVIDIA GeForce RTX 4090", None, None),
        ("", None, None),
    ],
)
def test_a_device_is_known_by_its_drivers_name(
    name: str, bf16: float | None, fp32: float | None
) -> None:
    assert device_peak_flops_per_s(name, "bf16") == bf16
    assert device_peak_flops_per_s(name, "fp16") == bf16
    assert device_peak_flops_per_s(name, "fp32") == fp32

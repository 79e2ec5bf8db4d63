"""Small models of many architectures, with random weights, as transformers itself makes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PretrainedConfig

_SIZES: dict[str, Any] = {
    "vocab_size": 264,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "initializer_range": 0.08,
}
_WINDOW = {"sliding_window": 8}
_EXPERTS = {"num_experts_per_tok": 2, "router_aux_loss_coef": 0.0}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {"attention_bias": True, "mlp_bias": True},
    "qwen2": {"tie_word_embeddings": True},
    "qwen3": {},
    "mistral": _WINDOW,
    "gemma2": {**_WINDOW, "query_pre_attn_scalar": 16},
    "gemma3_text": {**_WINDOW, "query_pre_attn_scalar": 16},
    "phi3": {},
    "granite": {"attention_multiplier": 0.2, "logits_scaling": 2.0, "residual_multiplier": 0.5},
    "olmo2": {},
    "smollm3": {},
    "glm4": {},
    "starcoder2": {"use_bias": True},
    "cohere": {},
    "mixtral": {**_EXPERTS, "num_local_experts": 4},
    "qwen3_moe": {**_EXPERTS, "num_experts": 4, "moe_intermediate_size": 32},
    "olmoe": {**_EXPERTS, "num_experts": 4},
}
"""transformers' model_type to what its config has beside the common sizes."""


def write_config(directory: Path, model_type: str, **changes: Any) -> Path:
    """config.json of a model of this type; returns `directory`."""
    architecture_config(model_type, **changes).save_pretrained(directory)
    return directory


def architecture_config(model_type: str, **changes: Any) -> PretrainedConfig:
    """The config of a small model of this type."""
    return CONFIG_MAPPING[model_type](**{**_SIZES, **ARCHITECTURES[model_type], **changes})


def write_architecture(directory: Path, model_type: str, **changes: Any) -> Path:
    """config.json and safetensors of a model of this type; returns `directory`."""
    config = architecture_config(model_type, **changes)
    torch.manual_seed(11)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        # Norms begin at one and biases at zero, where a fault in them would not show.
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(directory)
    return directory

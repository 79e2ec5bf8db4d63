"""A model without its weights: what its parameters are called, and how large each is."""

from __future__ import annotations

from pathlib import Path

import torch
from accelerate import init_empty_weights
from transformers import AutoModelForCausalLM, PreTrainedModel

from rayline.models.stage import load_config
from rayline.parallel.attention import training_attention


def skeleton_of(model_directory: Path) -> PreTrainedModel:
    """The whole model on the meta device, tied weights being one parameter; only the folder's
    config is read. Raises SpecError."""
    with init_empty_weights(include_buffers=False):
        config = load_config(model_directory)
        model = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, attn_implementation=training_attention(config)
        )
    # Going to the meta device makes two parameters of tied ones, and so does coming from it.
    model.tie_weights()
    return model


def parameter_shapes(model_directory: Path) -> dict[str, tuple[int, ...]]:
    """Hugging Face name to shape of each parameter, in the model's order, a tied one by its first
    name: how checkpoints name them. Raises SpecError."""
    named = skeleton_of(model_directory).named_parameters()
    return {name: tuple(parameter.shape) for name, parameter in named}

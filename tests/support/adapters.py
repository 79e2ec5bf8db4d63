"""Small LoRA adapters in PEFT's layout, as PEFT would save them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from rayline.serving.adapter_folder import matrix_sizes
from rayline.spec import ModelShape


def write_adapter(
    folder: Path,
    shape: ModelShape,
    *,
    rank: int = 4,
    modules: tuple[str, ...] = ("q_proj", "v_proj", "down_proj"),
    scale: float = 0.3,
    seed: int = 0,
    **config: object,
) -> Path:
    """Write an adapter for a model of this shape; `config` replaces fields of its config. Returns
    `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    fields = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "base",
        "r": rank,
        "lora_alpha": 2 * rank,
        "bias": "none",
        "target_modules": list(modules),
    }
    (folder / "adapter_config.json").write_text(json.dumps({**fields, **config}))
    save_file(
        dict(factors(shape, rank, modules, scale, seed)), folder / "adapter_model.safetensors"
    )
    return folder


def factors(
    shape: ModelShape, rank: int, modules: tuple[str, ...], scale: float = 0.3, seed: int = 0
) -> Mapping[str, torch.Tensor]:
    """The two factors of each matrix, drawn from `seed`."""
    generator = torch.Generator().manual_seed(seed)
    drawn = {}
    for layer in range(shape.layers):
        for module in modules:
            block = "self_attn" if module[0] in "qkvo" else "mlp"
            name = f"base_model.model.model.layers.{layer}.{block}.{module}"
            inputs, outputs = matrix_sizes(shape)[module]
            for side, size in (("A", (rank, inputs)), ("B", (outputs, rank))):
                drawn[f"{name}.lora_{side}.weight"] = (
                    torch.randn(*size, generator=generator) * scale
                )
    return drawn

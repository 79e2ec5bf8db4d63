"""Tiny checkpoints quantized as the tools that do so write them: compressed-tensors (int8), GPTQ,
AWQ and fp8. Each weight is simply rounded to the nearest value that its kind can hold.

Sources of the layouts: compressed-tensors' int-quantized format; AutoGPTQ's qweight, qzeros, scales
and g_idx (eight weights of four bits in an int32 along the inputs, zero points less one); AutoAWQ's
gemm version (along the outputs, in the order 0 2 4 6 1 3 5 7); transformers' fp8.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file

Method = Literal["int8", "gptq", "awq", "fp8"]
GROUP = 32
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_CHANNEL = {
    "num_bits": 8,
    "type": "int",
    "symmetric": True,
    "strategy": "channel",
    "dynamic": False,
}
_TOKEN = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "dynamic": True}
_FOUR_BITS = {"bits": 4, "group_size": GROUP}
_ENTRIES: dict[Method, dict[str, Any]] = {
    "int8": {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {
            "group_0": {"targets": ["Linear"], "weights": _CHANNEL, "input_activations": _TOKEN}
        },
    },
    "gptq": {"quant_method": "gptq", "desc_act": False, "sym": True, **_FOUR_BITS},
    "awq": {"quant_method": "awq", "zero_point": True, "version": "gemm", **_FOUR_BITS},
    "fp8": {"quant_method": "fp8", "activation_scheme": "dynamic"},
}


def quantize(source: Path, folder: Path, method: Method) -> Path:
    """Write the model in `source` (one safetensors file) to `folder`, its layers' matrices
    quantized and all else in float16. Returns `folder`."""
    shutil.copytree(source, folder)
    kept: dict[str, torch.Tensor] = {}
    for name, weight in load_file(source / "model.safetensors").items():
        stem = name.removesuffix(".weight")
        if name.startswith("model.layers.") and stem.endswith("proj"):
            kept.update((f"{stem}.{part}", value) for part, value in _parts(weight, method))
        else:
            kept[name] = weight.to(torch.float16)
    contiguous = {name: value.contiguous() for name, value in kept.items()}
    save_file(contiguous, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config.update(dtype="float16", quantization_config=_ENTRIES[method])
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _parts(weight: torch.Tensor, method: Method) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors that stand for one matrix [outputs, inputs]."""
    if method == "int8":
        scale = weight.abs().amax(1, keepdim=True) / 127
        yield "weight", torch.round(weight / scale).to(torch.int8)
        yield "weight_scale", scale.to(torch.float32)
    elif method == "fp8":
        scale = weight.abs().max() / torch.finfo(torch.float8_e4m3fn).max
        yield "weight", (weight / scale).to(torch.float8_e4m3fn)
        yield "weight_scale", scale.reshape(1).to(torch.float32)
    else:
        yield from _four_bits(weight, method)


def _four_bits(weight: torch.Tensor, method: Method) -> Iterator[tuple[str, torch.Tensor]]:
    outputs, inputs = weight.shape
    groups = weight.t().reshape(inputs // GROUP, GROUP, outputs)
    if method == "gptq":
        scale = groups.abs().amax(1) / 7
        zero = torch.full(scale.shape, 8.0)
    else:
        low, high = groups.amin(1), groups.amax(1)
        scale = (high - low) / 15
        zero = torch.round(-low / scale).clamp(0, 15)
    values = (torch.round(groups / scale[:, None]) + zero[:, None]).clamp(0, 15)
    values = values.reshape(inputs, outputs)
    if method == "gptq":
        yield "qweight", _packed(values, 0)
        yield "qzeros", _packed(zero - 1, 1)
        yield "g_idx", (torch.arange(inputs) // GROUP).to(torch.int32)
    else:
        yield "qweight", _packed(values, 1, _AWQ_ORDER)
        yield "qzeros", _packed(zero, 1, _AWQ_ORDER)
    yield "scales", scale.to(torch.float16)


def _packed(values: torch.Tensor, dim: int, order: Sequence[int] = range(8)) -> torch.Tensor:
    """Eight values of four bits in each int32, along `dim`."""
    rows = values.to(torch.int64).movedim(dim, -1)
    rows = rows.reshape(*rows.shape[:-1], -1, 8)
    packed = torch.zeros(rows.shape[:-1], dtype=torch.int64)
    for place, source in enumerate(order):
        packed |= rows[..., source] << (4 * place)
    packed = torch.where(packed >= 2**31, packed - 2**32, packed)
    return packed.to(torch.int32).movedim(-1, dim)

"""How a checkpoint keeps its weights, from the quantization_config of its config.json.

vLLM recognizes the method from the same entry, so nothing has to be said in a spec. Read here for
three things: what is refused before an engine starts, which type the computation can have, and how
many bytes the weights take. Sources: transformers' quantization_config of each method;
compressed-tensors' config_groups (vLLM project).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rayline.errors import SpecError
from rayline.spec import Device, EngineSpec
from rayline.spec.serve_engine import ONLINE_QUANTIZATION

_KEYS = ("quantization_config", "compression_config")
"""The second is what compressed-tensors wrote at first."""
_SCALE_BITS = 16
_FIXED_BITS = {"fp8": 8.0, "mxfp4": 4.25, "fbgemm_fp8": 8.0}
_ONLINE_BITS = 8.0
_DTYPES = {"gpu": ("auto", "bfloat16", "float16"), "cpu": ("auto", "bfloat16")}
"""In float16 a CPU's int8 kernel ends the process at the first prompt (vllm 0.32)."""


@dataclass(frozen=True, slots=True)
class Quantization:
    """How the matrices of the layers are kept. Embeddings, norms and, mostly, the head stay as
    they were."""

    method: str
    """As the checkpoint calls it: compressed-tensors, gptq, awq, fp8, ..."""
    weight_bits: float | None
    """Bits of one weight with its share of scales and zero points; None where the config does not
    say."""
    activation_bits: int | None = None
    """Bits of what is multiplied with the weights, where that is quantized too."""

    def __str__(self) -> str:
        bits = "" if self.weight_bits is None else f", {self.weight_bits:g} bits a weight"
        return f"{self.method}{bits}"


def read_quantization(config: Mapping[str, Any]) -> Quantization | None:
    """What `config`, a config.json, says; None for a plain checkpoint. Raises SpecError where the
    entry is not one of a quantization."""
    places = (config, config.get("text_config") or {})
    entries = [place[key] for place in places for key in _KEYS if place.get(key)]
    if not entries:
        return None
    entry = entries[0] if isinstance(entries[0], Mapping) else {}
    method = entry.get("quant_method")
    if not isinstance(method, str) or not method:
        raise SpecError(
            "model config.json, quantization_config",
            "names no quant_method, so nobody can tell how the weights are kept",
            fix="export the model again with the tool that quantized it",
        )
    if method == "compressed-tensors":
        return _compressed_tensors(entry)
    if method in ("gptq", "awq"):
        return Quantization(method, _grouped_bits(entry.get("bits"), entry.get("group_size"), True))
    return Quantization(method, _FIXED_BITS.get(method))


def check_quantization(engine: EngineSpec, found: Quantization | None, device: Device) -> None:
    """Refuse an engine.quantization that the checkpoint contradicts, and a dtype that no kernel for
    quantized weights computes in on this device. Called by the driver and by each replica. Raises
    SpecError."""
    asked = engine.quantization
    allowed = _DTYPES[device]
    if (found is not None or asked is not None) and engine.dtype not in allowed:
        raise SpecError(
            "engine.dtype",
            f"kernels for quantized weights ({asked or found}) do not compute in it on {device}",
            value=engine.dtype,
            allowed=", ".join(allowed),
        )
    if asked is None or (found is not None and asked == found.method):
        return
    if asked in ONLINE_QUANTIZATION and found is None:
        return
    if found is None:
        raise SpecError(
            "engine.quantization",
            "the checkpoint is not quantized",
            value=asked,
            allowed=", ".join(sorted(ONLINE_QUANTIZATION)),
            fix="remove it, or have vLLM quantize while it loads: fp8_per_tensor",
        )
    raise SpecError(
        "engine.quantization",
        f"the checkpoint is quantized already, by {found.method}",
        value=asked,
        allowed=found.method,
        fix="remove it: the method is recognized",
    )


def weight_bits(engine: EngineSpec, found: Quantization | None, computed_bits: int) -> float:
    """Bits of one weight of the layers' matrices in memory. Raises SpecError where the checkpoint
    does not say."""
    if engine.quantization in ONLINE_QUANTIZATION:
        return _ONLINE_BITS
    if found is None:
        return float(computed_bits)
    if found.weight_bits is None:
        raise SpecError(
            "model config.json, quantization_config",
            f"does not say how many bits a weight of {found.method} takes",
            fix="fetch the weights: their files say how large they are",
        )
    return found.weight_bits


def _compressed_tensors(entry: Mapping[str, Any]) -> Quantization:
    """The widest of its groups: mostly there is one."""
    groups = entry.get("config_groups")
    kinds = [group for group in groups.values() if group] if isinstance(groups, Mapping) else []
    weights = [group.get("weights") or {} for group in kinds]
    inputs = [group.get("input_activations") or {} for group in kinds]
    bits = [
        _grouped_bits(
            one.get("num_bits"),
            one.get("group_size") if one.get("strategy") == "group" else None,
            not one.get("symmetric", True),
        )
        for one in weights
    ]
    known = [one for one in bits if one is not None]
    activation = [one["num_bits"] for one in inputs if isinstance(one.get("num_bits"), int)]
    return Quantization(
        "compressed-tensors",
        max(known, default=None),
        max(activation, default=None),
    )


def _grouped_bits(bits: object, group_size: object, zero_points: bool) -> float | None:
    """Each group of weights has a scale of 16 bits, and a zero point as wide as a weight."""
    if not isinstance(bits, int) or isinstance(bits, bool) or bits < 1:
        return None
    if not isinstance(group_size, int) or group_size < 1:
        return float(bits)
    return bits + (_SCALE_BITS + (bits if zero_points else 0)) / group_size

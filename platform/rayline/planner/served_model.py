"""ServedModel: what a model's folder says that serving is planned from. No weights are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rayline.planner.kv_cache import CacheShape
from rayline.planner.parameters import count_by_component
from rayline.planner.quantization import Quantization, read_quantization
from rayline.planner.shape import read_model_config, read_model_shape
from rayline.spec import ModelShape

_TYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_DEFAULT_TYPE = "float32"
"""What transformers takes where a config names none."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """The sizes of one model."""

    shape: ModelShape
    cache: CacheShape
    quantization: Quantization | None
    """None for a plain checkpoint."""
    stored_bytes: int
    """Of one weight that is not quantized, in the checkpoint."""
    file_bytes: int
    """Of the folder's *.safetensors; 0 where they are not here, and the weights are counted."""
    scaled_positions: bool
    """Whether positions are stretched, so that more tokens work than the config's positions."""

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], shape: ModelShape, file_bytes: int = 0
    ) -> ServedModel:
        """Read a config.json; `shape` is read from the same one. Raises SpecError."""
        text = config.get("text_config") or config
        named = text.get("dtype") or text.get("torch_dtype") or config.get("dtype") or _DEFAULT_TYPE
        return cls(
            shape=shape,
            cache=CacheShape.from_config(config, shape),
            quantization=read_quantization(config),
            stored_bytes=_TYPE_BYTES.get(str(named), _TYPE_BYTES[_DEFAULT_TYPE]),
            file_bytes=file_bytes,
            scaled_positions=_is_scaled(text),
        )

    def weight_bytes(self, value_bytes: int, bits: float) -> int:
        """Bytes of all weights, computing with values of `value_bytes` and keeping each weight of
        the layers' matrices in `bits`."""
        if self.file_bytes and self.quantization is None:
            plain = self.file_bytes / self.stored_bytes
            share = self._matrices / self._parameters
            return round(plain * (share * bits / 8 + (1 - share) * value_bytes))
        if self.file_bytes:
            return self.file_bytes
        ends = self._parameters - self._matrices
        return round(self._matrices * bits / 8 + ends * value_bytes)

    def device_share(self, tensor: int, pipeline: int) -> float:
        """The part of the weights that the device with most of them holds."""
        parts = count_by_component(self.shape)
        layers = -(-self.shape.layers // pipeline)
        layer = (parts.layer_attention + parts.layer_ffn) / tensor + parts.layer_whole
        # The first stage has the embedding, the last the head (the embedding, where it is tied).
        table = parts.embedding if pipeline > 1 else parts.embedding + parts.head
        return (layers * layer + table / tensor + parts.final_norm) / self._parameters

    @property
    def _parameters(self) -> int:
        parts = count_by_component(self.shape)
        return parts.embedding + self.shape.layers * parts.layer + parts.final_norm + parts.head

    @property
    def _matrices(self) -> int:
        """Of them, in the layers' matrices, which are what gets quantized."""
        parts = count_by_component(self.shape)
        return self.shape.layers * (parts.layer_attention + parts.layer_ffn)


def read_served_model(folder: Path) -> ServedModel:
    """The sizes of the model in `folder`, in Hugging Face's layout; the weights may be missing.
    Called on the driver. Raises SpecError where config.json is missing or lacks a size."""
    config = read_model_config(folder)
    files = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    return ServedModel.from_config(config, read_model_shape(folder), files)


def _is_scaled(text: Mapping[str, Any]) -> bool:
    for key in ("rope_scaling", "rope_parameters"):
        entry = text.get(key)
        if isinstance(entry, Mapping):
            kind = entry.get("rope_type") or entry.get("type") or "default"
            if kind != "default":
                return True
    return False

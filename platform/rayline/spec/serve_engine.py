"""EngineSpec: the inference engine of one replica."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from rayline.spec.document import Document


class EngineSpec(Document):
    """vLLM's engine arguments that a deployment may set; names are vLLM's own."""

    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of weights and computation; auto takes float32 on CPU, the model's own on GPU."""
    max_model_len: int = Field(default=2048, ge=16)
    """Longest prompt and answer together, in tokens."""
    max_num_seqs: int = Field(default=32, ge=1)
    """Most sequences that the engine computes at once."""
    tensor_parallel_size: int = Field(default=1, ge=1)
    """Devices that one replica's layers are split over."""
    kv_cache_gib: float = Field(default=1.0, gt=0)
    """Memory for the paged KV cache on CPU, in GiB (a GPU uses gpu_memory_utilization)."""
    gpu_memory_utilization: float = Field(default=0.9, gt=0, le=1)
    """Share of a GPU's memory that the engine takes."""
    enforce_eager: bool | None = None
    """True computes without a compiled graph: ready sooner, slower on GPUs. null: true on CPU,
    where compiling asks for a C++ compiler and wins little; false on GPU."""
    seed: int = 0
    """Seed of sampling."""

"""What to change where a model does not fit, or holds fewer sequences than wanted: single fields,
each computed with the same arithmetic as the plan itself."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from rayline.errors import SpecError
from rayline.planner.hardware import GPU_MEMORY_GIB, gpu_memory_bytes
from rayline.planner.served_model import ServedModel
from rayline.planner.serving import GIB, ServingPlan, plan_serving
from rayline.spec import Device, EngineSpec

_TOLD = 4
_CACHE_STEP_GIB = 0.25
_MOST_TENSOR = 8
"""GPUs of one node in most machines."""
_LENGTH_STEP_TOKENS = 256


@dataclass(frozen=True, slots=True)
class Fit:
    """One change with which the model fits."""

    override: str
    """As `--set` takes it."""
    sequence_tokens: int
    """engine.max_model_len, after it."""
    sequences: float
    """Sequences of that length that are held at once, after it."""
    devices: int
    """Devices of a replica, after it."""

    def __str__(self) -> str:
        held = "one sequence" if self.sequences < 2 else f"{math.floor(self.sequences)} sequences"
        return f"--set {self.override} ({held} of {self.sequence_tokens} tokens)"


def what_fits(
    engine: EngineSpec,
    model: ServedModel,
    device: Device,
    memory_bytes: int | None = None,
    draft: ServedModel | None = None,
) -> list[Fit]:
    """The changes of a single field with which one sequence of max_model_len fits, the first value
    of each field that does, those that cost least first: a shorter limit, a smaller cache entry,
    smaller weights, more devices, a larger GPU. Called on the driver, on an engine that passes
    `check_model`."""
    found: dict[str, Fit] = {}
    now = plan_serving(engine, model, device, memory_bytes, draft)
    for field, value in _candidates(engine, model, now):
        if field in found:
            continue
        try:
            changed = engine.changed({field: value})
            changed.check_device(device)
            memory = gpu_memory_bytes(str(value)) if field == "gpu" else memory_bytes
            plan = plan_serving(changed, model, device, memory, draft)
        except SpecError:
            continue
        if plan.fits:
            text = f"engine.{field}={value}"
            found[field] = Fit(text, plan.sequence_tokens, plan.sequences, plan.devices)
    return list(found.values())


def fitting_advice(fits: list[Fit]) -> str:
    """The first few of them in one line, to stand behind an error."""
    if not fits:
        return "use a smaller model, one that is quantized, or devices with more memory"
    return "; or ".join(str(one) for one in fits[:_TOLD])


def _candidates(
    engine: EngineSpec, model: ServedModel, now: ServingPlan
) -> Iterator[tuple[str, object]]:
    if now.longest_tokens >= _LENGTH_STEP_TOKENS:
        yield "max_model_len", now.longest_tokens // _LENGTH_STEP_TOKENS * _LENGTH_STEP_TOKENS
    if now.device == "cpu":
        blocks = now.layout.blocks(engine.max_model_len) + 1
        needed_gib = blocks * now.layout.block_bytes / GIB
        yield "kv_cache_gib", math.ceil(needed_gib / _CACHE_STEP_GIB) * _CACHE_STEP_GIB
    if engine.kv_cache_dtype == "auto":
        yield "kv_cache_dtype", "fp8"
    if now.device == "cpu":
        return
    if engine.gpu_memory_utilization < 0.95:
        yield "gpu_memory_utilization", 0.95
    if engine.max_num_batched_tokens is None:
        yield "max_num_batched_tokens", 2048
    if model.quantization is None and engine.quantization is None:
        yield "quantization", "fp8_per_tensor"
    tensor = 2 * engine.tensor_parallel_size
    while tensor <= _MOST_TENSOR:
        yield "tensor_parallel_size", tensor
        tensor *= 2
    if engine.gpu is not None:
        has_gib = GPU_MEMORY_GIB.get(engine.gpu, math.inf)
        larger = [kind for kind, gib in GPU_MEMORY_GIB.items() if gib > has_gib]
        for kind in sorted(larger, key=lambda kind: GPU_MEMORY_GIB[kind]):
            yield "gpu", kind

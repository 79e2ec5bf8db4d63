"""What a served model takes of a device's memory, and what that leaves for sequences.

On a GPU vLLM takes `gpu_memory_utilization` of the memory, loads the weights, computes one step as
large as steps get to see what that takes, and gives the rest to the KV cache. What the step takes
is the larger of two peaks: a layer's, in which the feed-forward network of `max_num_batched_tokens`
tokens stands, and the sampler's, in which the logits of `max_num_seqs` tokens stand in several
copies; with a mixture of experts, the kernels' workspace besides. The constants are fitted to what
vLLM 0.19 reported of 15 models on one to four H100 (llm-d-planner, accuracy report of April 2026);
tests/planner/test_serving.py holds the error against them.

On a CPU the spec says how large the cache is (`kv_cache_gib`), and nothing is estimated but the
processes' own memory.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from rayline.errors import SpecError
from rayline.planner.kv_cache import CacheLayout
from rayline.planner.quantization import check_quantization, weight_bits
from rayline.planner.served_model import ServedModel
from rayline.spec import Device, EngineSpec, ModelShape
from rayline.spec.serve_engine import ONLINE_QUANTIZATION

GIB = 2**30
_VALUE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_CACHE_BYTES = {"bfloat16": 2, "fp8": 1, "fp8_e5m2": 1}
_SAMPLER_BYTES = 14
"""Logits as computed, in float32, sorted, and as probabilities, a sequence and entry of the
vocabulary."""
_STREAMS = 3
"""Copies of the hidden states that stand at a peak."""
_FFN_COPIES = 3
"""Gate, up, and their product."""
_CONTEXT_BYTES = {1: 270 * 2**20, 2: 2_100 * 2**20}
"""CUDA's context and workspaces of one GPU; of several, NCCL's buffers besides."""
_GRAPH_BYTES = GIB
"""Captured graphs: 0.5 to 1.9 GiB were reported, 1.0 in the mean."""
_BATCHED_TOKENS = {"cpu": 2048, "gpu": 8192}
"""vLLM's own choice on CPU, and on GPUs of 70 GiB and more; smaller ones take 2048."""
_BLOCK_TOKENS = {"cpu": 128, "gpu": 16}
_WORKER_BYTES = 860 * 2**20
_OTHER_PROCESSES_BYTES = 1_700 * 2**20
"""vLLM's processes on CPU without a model, measured (0.32): each worker, and of a replica its
scheduler and the actor that holds its requests."""
_TOLERANCE = 0.03
"""Of a GPU's memory: what the estimate may be wrong by before a deployment is refused for it."""


@dataclass(frozen=True, slots=True)
class ServingPlan:
    """One replica's memory, on the device that holds most. On a CPU each of vLLM's workers counts
    as a device, and all of them lie in the node's memory."""

    device: Device
    devices: int
    """Of one replica."""
    weights_bytes: int
    reserve_bytes: int
    """What a step, graphs, adapters' places and the process take besides."""
    cache_bytes: int
    """What the KV cache has; 0 where weights and reserve leave nothing."""
    memory_bytes: int | None
    """What the engine may take of the device (a CPU: the replica of the node); None where that is
    unknown."""
    layout: CacheLayout
    sequence_tokens: int
    """engine.max_model_len."""
    max_sequences: int
    """engine.max_num_seqs."""

    @property
    def total_bytes(self) -> int:
        """All that one device holds."""
        return self.weights_bytes + self.reserve_bytes + self.cache_bytes

    @property
    def sequences(self) -> float:
        """Sequences of max_model_len tokens that the cache holds at once."""
        return self.layout.sequences(self.cache_bytes, self.sequence_tokens)

    @property
    def longest_tokens(self) -> int:
        """The longest sequence that the cache holds, up to max_model_len."""
        return self.layout.longest(self.cache_bytes, 1, self.sequence_tokens)

    @property
    def concurrent_tokens(self) -> int:
        """The length of which max_num_seqs sequences are held at once, up to max_model_len."""
        return self.layout.longest(self.cache_bytes, self.max_sequences, self.sequence_tokens)

    @property
    def known(self) -> bool:
        """Whether the memory is known, and with it what the cache holds."""
        return self.device == "cpu" or self.memory_bytes is not None

    @property
    def fits(self) -> bool:
        """Whether one sequence of max_model_len tokens is held, and the memory is there."""
        return self.sequences >= 1 and self.replicas(self.devices) != 0

    @property
    def surely_too_small(self) -> bool:
        """Whether not one sequence is held, even where an estimate is wrong in its favour."""
        estimated = self.memory_bytes if self.device == "gpu" else None
        more = self.cache_bytes + int(_TOLERANCE * (estimated or 0))
        return self.layout.sequences(more, self.sequence_tokens) < 1

    def replicas(self, gpus: int) -> int | None:
        """Replicas that one node of `gpus` such GPUs holds (a CPU: by its memory alone); None where
        its memory is unknown."""
        if self.memory_bytes is None:
            return None
        if self.device == "gpu":
            return gpus // self.devices if self.total_bytes <= self.memory_bytes else 0
        return self.memory_bytes // (self.devices * self.total_bytes)


def plan_serving(
    engine: EngineSpec,
    model: ServedModel,
    device: Device,
    memory_bytes: int | None = None,
    draft: ServedModel | None = None,
) -> ServingPlan:
    """One replica's memory. `memory_bytes` is what a GPU has (a CPU: the node); without it a GPU's
    cache is unknown and counted as 0. `draft` is speculation.model.

    Called on the driver. Raises SpecError where the model cannot be served so: too many tokens for
    its positions, heads or layers that cannot be cut so, a quantization that is not the model's.
    """
    check_model(engine, model, device)
    value = value_bytes(engine, model, device)
    weights = _weights_on_device(engine, model, value)
    if draft is not None:
        weights += draft.weight_bytes(value, 8 * value) // engine.tensor_parallel_size
    weights = max(0, weights - int(engine.cpu_offload_gib * GIB))
    reserve = _reserve_bytes(engine, model.shape, device, value)
    cache = int(engine.kv_cache_gib * GIB) if device == "cpu" else 0
    usable = memory_bytes
    if device == "gpu" and memory_bytes is not None:
        usable = int(memory_bytes * engine.gpu_memory_utilization)
        cache = max(0, usable - weights - reserve)
    return ServingPlan(
        device=device,
        devices=engine.devices,
        weights_bytes=weights,
        reserve_bytes=reserve,
        cache_bytes=cache,
        memory_bytes=usable,
        layout=_layout(engine, model, device, value, draft),
        sequence_tokens=engine.max_model_len,
        max_sequences=engine.max_num_seqs,
    )


def check_model(engine: EngineSpec, model: ServedModel, device: Device) -> None:
    """Refuse what this kind of device cannot do with this model. Called on the driver. Raises
    SpecError."""
    check_quantization(engine, model.quantization, device)
    shape, tensor = model.shape, engine.tensor_parallel_size
    if shape.heads % tensor:
        raise SpecError(
            "engine.tensor_parallel_size",
            f"does not divide the model's {shape.heads} attention heads",
            value=tensor,
            allowed=", ".join(str(n) for n in range(1, shape.heads + 1) if shape.heads % n == 0),
        )
    if engine.pipeline_parallel_size > shape.layers:
        raise SpecError(
            "engine.pipeline_parallel_size",
            f"is more than the model's {shape.layers} layers",
            value=engine.pipeline_parallel_size,
            allowed=f"1..{shape.layers}",
        )
    known = shape.max_positions
    if known and engine.max_model_len > known and not model.scaled_positions:
        raise SpecError(
            "engine.max_model_len",
            f"is more than the {known} positions that the model knows",
            value=engine.max_model_len,
            allowed=f"16..{known}",
            fix=f"--set engine.max_model_len={known}",
        )


def value_bytes(engine: EngineSpec, model: ServedModel, device: Device) -> int:
    """Bytes of one number that is computed with."""
    if engine.dtype != "auto":
        return _VALUE_BYTES[engine.dtype]
    if device == "cpu" and not _is_quantized(engine, model):
        return _VALUE_BYTES["float32"]
    # vLLM computes a float32 checkpoint in float16 on GPUs.
    return 2


def _is_quantized(engine: EngineSpec, model: ServedModel) -> bool:
    return model.quantization is not None or engine.quantization in ONLINE_QUANTIZATION


def _weights_on_device(engine: EngineSpec, model: ServedModel, value: int) -> int:
    counted = model.file_bytes and model.quantization is not None
    bits = 0.0 if counted else weight_bits(engine, model.quantization, 8 * value)
    share = model.device_share(engine.tensor_parallel_size, engine.pipeline_parallel_size)
    return round(model.weight_bytes(value, bits) * share)


def _layout(
    engine: EngineSpec,
    model: ServedModel,
    device: Device,
    value: int,
    draft: ServedModel | None,
) -> CacheLayout:
    shape = model.cache
    if draft is not None and shape.layers:
        per_layer = shape.heads * shape.values_per_head
        more = draft.cache.layers * draft.cache.heads * draft.cache.values_per_head
        shape = replace(shape, full_layers=shape.full_layers + -(-more // per_layer))
    batched = engine.max_num_batched_tokens or _BATCHED_TOKENS[device]
    # Stages compute a batch each; on a GPU the next one is scheduled while one is computed.
    batches = engine.pipeline_parallel_size + (1 if device == "gpu" else 0)
    return CacheLayout(
        shape=shape,
        tensor=engine.tensor_parallel_size if shape.heads > 1 else 1,
        pipeline=engine.pipeline_parallel_size,
        value_bytes=_CACHE_BYTES.get(engine.kv_cache_dtype, value),
        block_tokens=engine.block_size or _BLOCK_TOKENS[device],
        step_tokens=batches * batched,
    )


def _reserve_bytes(engine: EngineSpec, shape: ModelShape, device: Device, value: int) -> int:
    adapters = _adapter_bytes(engine, shape, value)
    step = _step_bytes(engine, shape, device, value)
    if device == "cpu":
        return step + adapters + _WORKER_BYTES + _OTHER_PROCESSES_BYTES // engine.devices
    graphs = 0 if engine.enforce_eager else _GRAPH_BYTES
    return step + adapters + graphs + _CONTEXT_BYTES[min(2, engine.tensor_parallel_size)]


def _step_bytes(engine: EngineSpec, shape: ModelShape, device: Device, value: int) -> int:
    """What the largest step takes at its peak."""
    tokens = engine.max_num_batched_tokens or _BATCHED_TOKENS[device]
    tensor = engine.tensor_parallel_size
    streams = _STREAMS * tokens * shape.hidden * value
    sampler = engine.max_num_seqs * shape.vocab * _SAMPLER_BYTES
    if engine.task != "generate":
        sampler = 0
    if not shape.experts:
        layer = _FFN_COPIES * tokens * -(-shape.ffn // tensor) * value
        return streams + max(layer, sampler)
    # Gate and up, or the output, share one part of the workspace; their product has another.
    width = -(-shape.expert_ffn // tensor)
    routed = tokens * max(1, shape.experts_per_token) * value
    return streams + sampler + routed * (max(2 * width, shape.hidden) + width)


def _adapter_bytes(engine: EngineSpec, shape: ModelShape, value: int) -> int:
    """A place for each adapter, in every matrix of every layer: two factors of max_lora_rank."""
    query, key_value = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    attention = 4 * shape.hidden + 2 * query + 2 * key_value
    ffn = 3 * (shape.hidden + shape.ffn)
    sizes = shape.layers * (attention + ffn) // engine.pipeline_parallel_size
    return engine.adapter_places * engine.max_lora_rank * sizes * value

"""How many bytes a worker needs, for the stage that needs most.

State follows ZeRO's arithmetic (Rajbhandari et al. 2020, section 3) for what the two engines really
keep: weights, gradients' sums and AdamW's two means in float32, and for bf16 a bfloat16 copy of the
weights to compute with. The native engine (FSDP2) always shards what it keeps, and gathers a copy
of the weights for a step: all of them in stages 0 to 2, one layer after another in stage 3.

Activations are what autograd saves for the backward pass of an unfused Llama layer with a fused
attention (scaled_dot_product_attention, so nothing grows with the square of the sequence); nothing
is recomputed. Norms are split over the tensor axis only with plan.sequence; the context axis splits
all of it. A stage holds as many microbatches as its
schedule keeps in flight (Narayanan et al. 2021, section 2.2).

Not counted: the CUDA context and communication buffers (a few GiB on a GPU), the allocator's
fragments, the interpreter, and for a mixture of experts the activations of more than one expert.
"""

from __future__ import annotations

from dataclasses import dataclass

from rayline.planner.parameters import ParameterCounts, count_by_component, normalizes_queries
from rayline.spec import JobSpec, ModelShape

_FP32_BYTES = 4
_COMPUTE_BYTES = {"fp32": 4, "bf16": 2}
_ADAM_MEANS = 2


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes of one worker of one stage, at the peak of a step."""

    stage: int
    """Number of the stage, from 0."""
    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    activations_bytes: int
    logits_bytes: int
    """Logits and their gradients; 0 before the last stage."""

    @property
    def total_bytes(self) -> int:
        """All of it."""
        state = self.weights_bytes + self.gradients_bytes + self.optimizer_bytes
        return state + self.activations_bytes + self.logits_bytes


def estimate_memory(shape: ModelShape, job: JobSpec) -> MemoryEstimate:
    """The estimate for the stage that needs most. Called on the driver, after `job.check`."""
    stages = [_stage_memory(shape, job, stage) for stage in range(job.plan.pipeline)]
    return max(stages, key=lambda estimate: estimate.total_bytes)


def stage_layers(layers: int, stages: int) -> list[int]:
    """Layers of each stage: as even as it goes, the rest to the stages in the middle, for the ends
    also hold embedding and head. The engine cuts by the same rule."""
    share, over = divmod(layers, stages)
    inner_first = sorted(range(stages), key=lambda stage: (-min(stage, stages - 1 - stage), stage))
    return [share + (stage in inner_first[:over]) for stage in range(stages)]


@dataclass(frozen=True, slots=True)
class _Held:
    """Parameters of one stage that fall to one tensor rank."""

    all: int
    layer: int
    """Of them, in one layer."""
    ends: int
    """Of them, in embedding, final norm and head."""


def _held(shape: ModelShape, job: JobSpec, stage: int) -> _Held:
    parts, tensor = count_by_component(shape), job.plan.tensor
    layer = -(-(parts.layer_attention + parts.layer_ffn) // tensor) + parts.layer_whole
    ends = _ends(parts, tensor, first=stage == 0, last=stage == job.plan.pipeline - 1)
    layers = stage_layers(shape.layers, job.plan.pipeline)[stage]
    return _Held(all=layers * layer + ends, layer=layer, ends=ends)


def _ends(parts: ParameterCounts, tensor: int, *, first: bool, last: bool) -> int:
    table = -(-parts.embedding // tensor)
    held = table if first else 0
    if last:
        held += parts.final_norm
        # A tied head is the embedding itself, unless that lies on another stage.
        held += table if parts.head or not first else 0
    return held


def _stage_memory(shape: ModelShape, job: JobSpec, stage: int) -> MemoryEstimate:
    held = _held(shape, job, stage)
    state = _native_state if job.engine == "native" else _deepspeed_state
    weights, gradients, optimizer = state(held, job)
    tokens = -(-job.sequences_per_microbatch * job.data.sequence_tokens // job.plan.context)
    in_flight = _microbatches_in_flight(job, stage)
    last = stage == job.plan.pipeline - 1
    layers = stage_layers(shape.layers, job.plan.pipeline)[stage]
    per_token = layers * layer_activation_bytes(shape, job)
    parts = job.plan.tensor if job.plan.sequence else 1
    if last:
        per_token += _norm_bytes(shape.hidden, _COMPUTE_BYTES[job.precision]) // parts
    if job.plan.pipeline > 1:  # what the stage received waits for its gradient
        per_token += shape.hidden * _COMPUTE_BYTES[job.precision] // parts
    return MemoryEstimate(
        stage=stage,
        weights_bytes=weights,
        gradients_bytes=gradients,
        optimizer_bytes=optimizer,
        activations_bytes=in_flight * tokens * per_token,
        logits_bytes=_logits_bytes(shape, job, tokens, in_flight) if last else 0,
    )


def _native_state(held: _Held, job: JobSpec) -> tuple[int, int, int]:
    """Weights, gradients and optimizer of FSDP2's ZeRO stages."""
    plan, compute = job.plan, _COMPUTE_BYTES[job.precision]
    holders = plan.data * plan.context
    kept = -(-held.all // (holders // plan.replicate if plan.zero_stage else 1))
    weights = gradients = _FP32_BYTES * kept
    if holders > 1 or job.precision != "fp32":
        # One layer computes while the next one arrives; embedding and head stay for the step.
        near = min(held.all, 2 * held.layer + held.ends)
        weights += compute * (near if plan.zero_stage == 3 else held.all)
        accumulates = plan.zero_stage < 2 and plan.microbatches > 1
        gradients += _FP32_BYTES * held.all if accumulates else compute * near
    return weights, gradients, _ADAM_MEANS * _FP32_BYTES * kept


def _deepspeed_state(held: _Held, job: JobSpec) -> tuple[int, int, int]:
    """The same of DeepSpeed's: each stage shards one thing more, as in the paper."""
    plan, compute = job.plan, _COMPUTE_BYTES[job.precision]
    shard = -(-held.all // plan.data)
    near = min(held.all, 2 * held.layer + held.ends)
    computed = compute * (shard + near if plan.zero_stage == 3 else held.all)
    mastered = shard if plan.zero_stage >= 1 else held.all
    master = 0 if job.precision == "fp32" else _FP32_BYTES * mastered
    gradients = _FP32_BYTES * (shard if plan.zero_stage >= 2 else held.all)
    return computed + master, gradients, _ADAM_MEANS * _FP32_BYTES * mastered


def _microbatches_in_flight(job: JobSpec, stage: int) -> int:
    plan = job.plan
    if plan.pipeline == 1:
        return 1
    if plan.schedule == "gpipe":
        return plan.microbatches
    return min(plan.microbatches, plan.pipeline - stage)


def layer_activation_bytes(shape: ModelShape, job: JobSpec) -> int:
    """Bytes that one layer saves for each token of a microbatch, on one tensor rank.

    Two norms, each with the input of the matrix that follows it; queries, keys, values and the
    attention's output with its logarithm of sums; gate, its activation, up, and their product.
    """
    compute, tensor = _COMPUTE_BYTES[job.precision], job.plan.tensor
    query, key = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    norms = 2 * (_norm_bytes(shape.hidden, compute) + compute * shape.hidden)
    if job.plan.sequence:
        norms = -(-norms // tensor)
    attention = compute * (2 * query + 2 * key) + _FP32_BYTES * shape.heads
    if normalizes_queries(shape):
        attention += (shape.heads + shape.kv_heads) * _norm_bytes(shape.head_dim, compute)
    ffn = 4 * compute * shape.ffn
    return norms + -(-(attention + ffn) // tensor)


def _norm_bytes(width: int, compute: int) -> int:
    """RMSNorm saves its input and the root in float32, and what it multiplies with its weight."""
    return (_FP32_BYTES + compute) * width + _FP32_BYTES


def _logits_bytes(shape: ModelShape, job: JobSpec, tokens: int, in_flight: int) -> int:
    """Each tensor rank has the logits of its part of the vocabulary; those of a few tokens at a
    time are turned to float32."""
    compute = _COMPUTE_BYTES[job.precision]
    own = -(-shape.vocab // job.plan.tensor)
    return tokens * own * (in_flight * compute + compute)

"""How many bytes a worker needs, for the place along the pipeline that needs most.

State follows ZeRO's arithmetic (Rajbhandari et al. 2020, section 3) for what the two engines really
keep: weights, gradients' sums and the optimizer's state (AdamW's two means) in float32, and for
bf16 a bfloat16 copy of the weights to compute with. The native engine (FSDP2) always shards what it
keeps, and gathers a copy of the weights for a step: all of them in stages 0 to 2, one layer after
another in stage 3.

Activations are what autograd saves for the backward pass of an unfused Llama layer with a fused
attention (scaled_dot_product_attention, so nothing grows with the square of the sequence). With
recompute, a layer keeps its input (full) or also what products and attention came to (selective),
and the layer that is computed again stands besides. Norms, and inputs of layers, are split over the
tensor axis only with plan.sequence; the context axis splits all of it. A worker holds the
microbatches that its schedule keeps in flight on each of its stages; where the backward pass is
split, up to the end of its second half. Gradients come as activations go where a step has one
microbatch: the two do not add up then (examples/bench/one_gpu.py).

Not counted: the CUDA context and communication buffers (a few GiB on a GPU), the allocator's
fragments, the interpreter, and for a mixture of experts the activations of more than one expert.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from rayline.planner.parameters import ParameterCounts, count_by_component, normalizes_queries
from rayline.planner.pipeline import peak_in_flight
from rayline.planner.schedule import Order, action_orders, worker_order
from rayline.spec import Adam8bitSpec, JobSpec, ModelShape, MuonSpec, SgdSpec

_FP32_BYTES = 4
_COMPUTE_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
_STATE_BYTES = {
    "adamw": 8.0,
    "adam8bit": 2.0,
    "adafactor": 0.0,
    "lion": 4.0,
    "lamb": 8.0,
    "muon": 4.0,
    "sgd": 4.0,
    "rmsprop": 4.0,
    "adagrad": 4.0,
    "adadelta": 8.0,
}
"""What each optimizer keeps of a parameter. Adafactor's rows and columns are less than a hundredth
of that, and not counted."""
_ADAMW_BESIDE_MUON_BYTES = 8
_BLOCK_ELEMENTS = 256
"""Elements that share a largest value in adam8bit."""


@dataclass(frozen=True, slots=True)
class MemoryEstimate:
    """Bytes of one worker, at the peak of a step."""

    stage: int
    """Number of the worker's first stage, from 0: its place along the pipeline."""
    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    activations_bytes: int
    logits_bytes: int
    """Logits and their gradients; 0 without the last stage."""
    late_gradients_bytes: int = 0
    """Of the gradients, those that come only as the backward pass lets activations go: where a step
    has one microbatch and no pipeline."""
    buffers_bytes: int = 0
    """Context of the device, communication, and what the allocator cannot use; 0 where it is not
    known what device it will be."""

    @property
    def total_bytes(self) -> int:
        """All that is there at one time."""
        peak = self.at_peak()
        state = peak.weights_bytes + peak.gradients_bytes + peak.optimizer_bytes
        return state + peak.activations_bytes + peak.logits_bytes + peak.buffers_bytes

    def at_peak(self) -> MemoryEstimate:
        """The parts as they are when most is held: at the backward pass's begin or at its end."""
        before = self.gradients_bytes - self.late_gradients_bytes
        if self.gradients_bytes > before + self.activations_bytes + self.logits_bytes:
            return replace(self, activations_bytes=0, logits_bytes=0)
        return replace(self, gradients_bytes=before, late_gradients_bytes=0)

    def on_device(self, reserved_gib: float, fragments: float) -> MemoryEstimate:
        """The same with what a device takes besides: a reserve, and a share of the activations."""
        shared = fragments * (self.activations_bytes + self.logits_bytes)
        return replace(self, buffers_bytes=int(reserved_gib * 2**30 + shared))


def estimate_memory(shape: ModelShape, job: JobSpec) -> MemoryEstimate:
    """The estimate for the worker that needs most. Called on the driver, after `job.check`."""
    return max(estimate_workers(shape, job), key=lambda estimate: estimate.total_bytes)


def estimate_workers(shape: ModelShape, job: JobSpec) -> list[MemoryEstimate]:
    """The estimate for each place along the pipeline. Called on the driver, after `job.check`."""
    orders = action_orders(job.plan)
    return [_worker_memory(shape, job, worker, order) for worker, order in enumerate(orders)]


def estimate_ends(shape: ModelShape, job: JobSpec) -> MemoryEstimate:
    """The larger estimate of the first and the last worker along the pipeline: at most that of
    `estimate_memory`, and sooner found. Called on the driver, after `job.check`."""
    ends = {0, job.plan.pipeline - 1}
    found = [_worker_memory(shape, job, one, worker_order(job.plan, one)) for one in sorted(ends)]
    return max(found, key=lambda estimate: estimate.total_bytes)


@dataclass(frozen=True, slots=True)
class _Held:
    """Parameters of one worker's stages that fall to one tensor rank, of experts its own."""

    all: int
    layer: int
    """Of them, in one layer."""
    ends: int
    """Of them, in embedding, final norm and head."""
    experts: int
    """Of them, in experts."""


def _held(shape: ModelShape, job: JobSpec, stages: dict[int, int]) -> _Held:
    """`stages`: number of each stage of the worker to its layers."""
    parts, tensor = count_by_component(shape), job.plan.tensor
    layers, last = sum(stages.values()), job.plan.stages - 1
    ffn = parts.layer_ffn // job.plan.expert
    layer = -(-(parts.layer_attention + ffn) // tensor) + parts.layer_whole
    ends = sum(_ends(parts, tensor, first=stage == 0, last=stage == last) for stage in stages)
    experts = layers * ffn // tensor if shape.experts else 0
    return _Held(all=layers * layer + ends, layer=layer, ends=ends, experts=experts)


def _ends(parts: ParameterCounts, tensor: int, *, first: bool, last: bool) -> int:
    table = -(-parts.embedding // tensor)
    held = table if first else 0
    if last:
        held += parts.final_norm
        # A tied head is the embedding itself, unless that lies on another stage.
        held += table if parts.head or not first else 0
    return held


def _worker_memory(shape: ModelShape, job: JobSpec, worker: int, order: Order) -> MemoryEstimate:
    """The worker at this place of the pipeline axis, which computes in this order."""
    plan = job.plan
    layers = plan.stage_layers(shape, job.data.sequence_tokens)
    stages = {stage: layers[stage] for stage in plan.stages_of_worker(worker)}
    state = _native_state if job.engine == "native" else _deepspeed_state
    weights, gradients, optimizer = state(_held(shape, job, stages), job)
    tokens = -(-job.sequences_per_microbatch * job.data.sequence_tokens // plan.context)
    activations = {
        stage: tokens * _stage_activation_bytes(shape, job, stage, count)
        for stage, count in stages.items()
    }
    logits_in_flight = peak_in_flight(order, {plan.stages - 1: 1})
    return MemoryEstimate(
        stage=worker,
        weights_bytes=weights,
        gradients_bytes=gradients,
        optimizer_bytes=optimizer,
        activations_bytes=peak_in_flight(order, activations)
        + tokens * _recomputed_bytes(shape, job),
        logits_bytes=_logits_bytes(shape, job, tokens, logits_in_flight) if logits_in_flight else 0,
        late_gradients_bytes=gradients if _comes_late(job) else 0,
    )


def _comes_late(job: JobSpec) -> bool:
    """Whether gradients take the place of activations; DeepSpeed has room for them all along."""
    return job.engine == "native" and job.plan.microbatches == 1 and job.plan.pipeline == 1


def _stage_activation_bytes(shape: ModelShape, job: JobSpec, stage: int, layers: int) -> int:
    """Bytes that one stage saves for each token of a microbatch."""
    per_token = layers * _kept_activation_bytes(shape, job)
    parts = job.plan.tensor if job.plan.sequence else 1
    if stage == job.plan.stages - 1:
        per_token += _norm_bytes(shape.hidden, _COMPUTE_BYTES[job.precision]) // parts
    if job.plan.stages > 1:  # what the stage received waits for its gradient
        per_token += shape.hidden * _COMPUTE_BYTES[job.precision] // parts
    return per_token


def _native_state(held: _Held, job: JobSpec) -> tuple[int, int, int]:
    """Weights, gradients and optimizer of FSDP2's ZeRO stages. An offloaded optimizer counts: its
    state is on the device while it steps."""
    plan, compute = job.plan, _COMPUTE_BYTES[job.precision]
    holders = plan.data * plan.context
    shards = holders // plan.replicate if plan.zero_stage else 1
    # Ranks that hold the same experts are fewer than those that hold the same of all else.
    sharing = max(1, shards // plan.expert)
    kept = -(-(held.all - held.experts) // shards) - (-held.experts // sharing)
    weights = gradients = _FP32_BYTES * kept
    if holders > 1 or job.precision != "fp32":
        # One layer computes while the next one arrives; embedding and head stay for the step.
        near = min(held.all, 2 * held.layer + held.ends)
        # A pipeline keeps what it gathered, and reduces gradients after the last microbatch.
        holds_all = plan.pipeline > 1
        weights += compute * (near if plan.zero_stage == 3 and not holds_all else held.all)
        accumulates = (plan.zero_stage < 2 or holds_all) and plan.microbatches > 1
        gradients += _FP32_BYTES * held.all if accumulates else compute * near
    return weights, gradients, _optimizer_bytes(held, job, kept, 1 / shards)


def _optimizer_bytes(held: _Held, job: JobSpec, kept: int, share: float) -> int:
    """State, and running mean, of the `kept` parameters out of those held by the tensor rank;
    `share`: what of those in no expert that is."""
    optim = job.optim
    each = 0.0 if isinstance(optim, SgdSpec) and not optim.momentum else _STATE_BYTES[optim.kind]
    total = each * kept
    if isinstance(optim, MuonSpec):
        total += (_ADAMW_BESIDE_MUON_BYTES - each) * share * held.ends
    if isinstance(optim, Adam8bitSpec):
        # The blocks' largest values, of both means, are whole on every rank of the stage.
        all_experts = held.all + (job.plan.expert - 1) * held.experts
        total += 2 * _FP32_BYTES * all_experts * job.plan.tensor / _BLOCK_ELEMENTS
    if job.ema is not None:
        total += _FP32_BYTES * kept
    return math.ceil(total)


def _deepspeed_state(held: _Held, job: JobSpec) -> tuple[int, int, int]:
    """The same of DeepSpeed's: each stage shards one thing more, as in the paper. What is offloaded
    counts nothing, unless the device is the host itself."""
    plan, compute = job.plan, _COMPUTE_BYTES[job.precision]
    shard = -(-held.all // plan.data)
    near = min(held.all, 2 * held.layer + held.ends)
    mastered = shard if plan.zero_stage >= 1 else held.all
    computed = compute * (shard + near if plan.zero_stage == 3 else held.all)
    master = 0 if job.precision == "fp32" else _FP32_BYTES * mastered
    gradients = _FP32_BYTES * (shard if plan.zero_stage >= 2 else held.all)
    optimizer = _optimizer_bytes(held, job, mastered, mastered / max(1, held.all))
    if job.resources.device != "cpu":
        if job.offload.parameters != "none":
            computed = compute * near
        if job.offload.optimizer != "none":
            master = optimizer = 0
    return computed + master, gradients, optimizer


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


def _kept_activation_bytes(shape: ModelShape, job: JobSpec) -> int:
    """Bytes that one layer keeps of each token from its forward to its backward pass."""
    compute, tensor = _COMPUTE_BYTES[job.precision], job.plan.tensor
    if _offloads_activations(job):
        return 0
    if job.recompute == "none":
        return layer_activation_bytes(shape, job)
    whole = compute * shape.hidden
    split = 0
    if job.recompute == "selective":
        query, key = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        split = compute * (2 * query + 2 * key + 2 * shape.ffn) + _FP32_BYTES * shape.heads
        whole += compute * 2 * shape.hidden
    return -(-whole // (tensor if job.plan.sequence else 1)) + -(-split // tensor)


def _recomputed_bytes(shape: ModelShape, job: JobSpec) -> int:
    """Bytes a token of the one layer that is computed again, or fetched from the host."""
    stays = job.recompute == "none" and not _offloads_activations(job)
    return 0 if stays else layer_activation_bytes(shape, job)


def _offloads_activations(job: JobSpec) -> bool:
    return job.offload.activations != "none" and job.resources.device != "cpu"


def _norm_bytes(width: int, compute: int) -> int:
    """RMSNorm saves its input and the root in float32, and what it multiplies with its weight."""
    return (_FP32_BYTES + compute) * width + _FP32_BYTES


def _logits_bytes(shape: ModelShape, job: JobSpec, tokens: int, in_flight: int) -> int:
    """Each tensor rank has the logits of its part of the vocabulary; those of a few tokens at a
    time are turned to float32. In chunks, gradients of the hidden states and of the head take the
    place of logits, and one chunk's are on their way."""
    compute = _COMPUTE_BYTES[job.precision]
    own = -(-shape.vocab // job.plan.tensor)
    if job.objective.chunk_tokens is not None:
        chunk = min(tokens, job.objective.chunk_tokens)
        kept = (tokens + own) * shape.hidden * compute
        passing = 2 * chunk * own * compute + own * shape.hidden * (_FP32_BYTES + compute)
        return in_flight * kept + passing
    return tokens * own * (in_flight * compute + compute)

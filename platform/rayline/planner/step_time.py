"""How long one optimizer step takes: first principles times a few fitted efficiencies.

One microbatch on one rank is matrix products, attention, elementwise passes over memory and
launches of kernels; then what is sent: by the tensor and context axes within each layer, between
stages, by the data axis once a step or for each layer. Each is bytes or operations over what the
machine can do at most, times a share that `Curves` holds and `calibration` fits. Sources of the
counts: Narayanan et al. 2021 (bubble, traffic), Korthikanti et al. 2022 (sequence axis, selective
recompute), Rajbhandari et al. 2020 (ZeRO's traffic), Liu et al. 2023 (ring), NCCL's ring costs.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from rayline.planner.columns import Columns, Numbers
from rayline.planner.curves import Curves

_ALIGNED = 64.0
_PCIE_BYTES_PER_S = 25e9
_ADAM_BYTES = 28.0
"""Read and written by the optimizer for one parameter: weight, gradient and two means in fp32, the
weights again in 16 bits."""
_FORWARD_PASSES = (10.0, 3.0, 2.0)
"""Passes over memory of a layer's forward pass beside products: of the hidden width (two norms, two
sums, dropout), the feed-forward width (activation) and queries and keys (rotation, layout)."""
_BACKWARD_PASSES = 1.6
"""Those of the backward pass over those."""
_SCORE_PASSES = 7.0
"""Reads and writes of each score where attention keeps them: product, mask, softmax, dropout,
product."""
_LAUNCHES = 22.0
"""Kernels of a layer's forward pass, with what the host does between them."""
_LOSS_BYTES = 24.0
"""Read and written for one logit from the head's product to its gradient."""


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Seconds of one step, by what they are spent on; one entry a run. They add up to the step."""

    compute_s: Numbers
    """Matrix products, attention, elementwise passes and launches of the worker that has most."""
    tensor_s: Numbers
    """Sending within layers that nothing hides: tensor, sequence, context and expert axes."""
    pipeline_s: Numbers
    """Sending between stages that nothing hides."""
    bubble_s: Numbers
    """Waiting for other stages."""
    data_s: Numbers
    """Gathering weights and summing gradients that nothing hides, and waiting for the slowest."""
    optimizer_s: Numbers
    """Reading and writing states, moving what is offloaded, and what each step costs at least."""

    @property
    def total_s(self) -> Numbers:
        """The whole step."""
        parts = [getattr(self, field.name) for field in fields(self)]
        total: Numbers = np.sum(parts, axis=0)
        return total


@dataclass(frozen=True, slots=True)
class _Layer:
    """Seconds of one layer for one microbatch."""

    forward: Numbers
    backward: Numbers
    sending: Numbers


def predict_step(c: Columns, curves: Curves) -> StepTimes:
    """The step times of all columns."""
    layer = _layer(c, curves)
    layer_s = layer.forward + layer.backward
    worst_s, all_s, layers_held = _stages(c, layer_s, _head_s(c, curves))
    # Where several share a core, all of them compute for one another's waiting.
    worst_s = np.where(c.sharing > 1, all_s / c.pipeline, worst_s) * c.sharing
    compute = c.microbatches * worst_s
    tensor = c.microbatches * layers_held * layer.sending
    others = all_s - worst_s + (c.pipeline - 1) * layers_held * layer.sending
    idle = np.where(c.pipeline > 1, c.bubble / c.chunks, 0.0)
    bubble = idle * np.maximum(0.0, 2 - c.sharing) * np.maximum(0.0, others)
    pipeline = _between_stages_s(c, curves)
    data = _data_s(c, curves, layer, worst_s)
    nodes = np.maximum(1.0, c.gpus / c.node)
    slowest = curves.jitter * np.log2(nodes) * (compute + tensor + bubble + pipeline)
    return StepTimes(
        compute_s=compute,
        tensor_s=tensor,
        pipeline_s=pipeline,
        bubble_s=bubble,
        data_s=data + slowest,
        optimizer_s=_optimizer_s(c, curves),
    )


def stage_seconds(c: Columns, curves: Curves) -> tuple[Numbers, Numbers, Numbers]:
    """Seconds of one microbatch in one layer, forward and backward, and in the head; with what
    layers send."""
    layer = _layer(c, curves)
    shared = layer.sending / 3
    return layer.forward + shared, layer.backward + 2 * shared, _head_s(c, curves)


def rank_tokens(c: Columns) -> Numbers:
    """Tokens of one microbatch on one rank."""
    return c.microbatch * c.tokens / c.context


def rank_weights(c: Columns) -> tuple[Numbers, Numbers, Numbers]:
    """Parameters that one rank of the stage that has most holds before ZeRO shards them: of its
    layers outside experts, of its experts, and of embedding or head."""
    held = np.ceil(c.layers / c.pipeline)
    dense = held * (c.attention_weights + c.shared_weights) / c.tensor
    experts = held * c.expert_weights / (c.expert_tensor * c.expert)
    table = c.vocab * c.hidden / c.tensor
    return dense, experts, np.where((c.pipeline == 1) & (c.tied == 0), 2 * table, table)


def _product_s(
    c: Columns,
    k: Curves,
    rows: Numbers,
    across: Numbers,
    out: Numbers,
    count: Numbers | float = 1.0,
    grouped: Numbers | float = 1.0,
) -> Numbers:
    """`count` products of rows x across with across x out."""
    half = k.half_width * grouped * c.peak / c.hbm / c.element_bytes
    share = k.matrix_of(c.curve)
    for width in (rows, across, out):
        share = share * width / (width + half)
    off = (np.mod(across, _ALIGNED) != 0) | (np.mod(out, _ALIGNED) != 0)
    flops = 2 * rows * across * out * (1 + k.misaligned * off)
    moved = c.element_bytes * (rows * across + across * out + rows * out)
    cast = c.low_precision * k.cast * 3 * (rows * across + rows * out) / (c.hbm * k.memory)
    once: Numbers = np.maximum(flops / (c.peak * share), moved / (c.hbm * k.memory)) + cast
    return count * once


def _layer(c: Columns, k: Curves) -> _Layer:
    """One layer, forward and backward with what is computed again, and what it sends."""
    tokens, split = rank_tokens(c), c.tensor
    per_token = np.maximum(1.0, c.experts_per_token)
    rows = np.where(
        c.experts > 0, tokens * c.expert * per_token / np.maximum(1.0, c.experts), tokens
    )
    experts_split = np.where(c.experts > 0, c.expert_tensor, split)
    shared = split / experts_split
    rows = rows / np.where(c.experts > 0, shared, 1.0)
    width = c.ffn / per_token / experts_split
    times = np.where(c.experts > 0, tokens * per_token / shared / rows, 1.0)
    grouped = np.where(c.experts > 0, k.grouped, 1.0)
    products = (
        # What comes before the attention, squeezed or not, is as much as its weights say.
        _product_s(c, k, tokens, c.hidden, (c.attention_weights / c.hidden - c.query) / split)
        + _product_s(c, k, tokens, c.query / split, c.hidden)
        + _product_s(c, k, rows, c.hidden, (c.ffn_matrices - 1) * width, times, grouped)
        + _product_s(c, k, rows, width, c.hidden, times, grouped)
    )
    core, core_back = _attention_s(c, k)
    whole = np.where(c.sequence > 0, split, 1.0)
    wide, inner, heads = _FORWARD_PASSES
    moved = (
        c.element_bytes
        * tokens
        * (
            (wide + 3 * c.dropout) * c.hidden / whole
            + inner * c.ffn_matrices / 2 * c.ffn / split
            + heads * (c.query + 2 * c.key) / split
        )
    )
    moved = (
        moved
        + 2 * k.routing * c.element_bytes * (c.experts > 0) * tokens * per_token * c.hidden / whole
    )
    passes = k.elementwise * np.where(c.fused > 0, 1.0, k.unfused) * moved / (c.hbm * k.memory)
    kernels = (
        _LAUNCHES
        * np.where(c.fused > 0, 0.6, 1.0)
        * np.where(c.experts > 0, k.routing_launches, 1.0)
    )
    launched = k.launch_s * kernels * (1 - c.graphed)
    forward = _later(products + core + passes, launched)
    backward = _later(2 * products + core_back + _BACKWARD_PASSES * passes, 1.5 * launched)
    again = np.where(c.recompute >= 2, forward, np.where(c.recompute > 0, core, 0.0))
    again = c.recomputed * again + c.reuse * passes
    again = again + c.waits * (c.recompute >= 2) * k.checkpoint_s + _added_s(c, k)
    return _Layer(forward, backward + again, _within_layers_s(c, k, core + core_back))


def _added_s(c: Columns, k: Curves) -> Numbers:
    """The weights' gradients of one microbatch of one layer, added to those of the others before;
    who gathers layer by layer adds what it has shared out, and that is little."""
    held = (c.attention_weights + c.shared_weights) / c.tensor
    held = held + c.expert_weights / (c.expert_tensor * c.expert)
    moved = held * (2 * c.gradient_held + 2)
    whole = (c.microbatches > 1) & (c.gathers_layers == 0)
    return np.where(whole, moved / (c.hbm * k.memory), 0.0)


def _attention_s(c: Columns, k: Curves) -> tuple[Numbers, Numbers]:
    """Queries with keys, and scores with values: forward and backward."""
    tokens = rank_tokens(c)
    flops = 2 * tokens * c.tokens * c.query / c.tensor
    speed = c.bf16_peak * k.matrix_of(c.bf16_curve)
    reached = k.attention_of(c.bf16_curve) * np.where(c.recent > 0, 1.0, k.early)
    fused = flops / (c.bf16_peak * reached)
    scores = c.heads / c.tensor * tokens * c.tokens * c.element_bytes
    passes = k.scores * _SCORE_PASSES * scores / (c.hbm * k.memory)
    kept = 2 * flops / (speed * 0.6) + passes
    return (
        np.where(c.flash > 0, fused, kept),
        np.where(c.flash > 0, 2.5 * fused, 4 * flops / (speed * 0.6) + 1.4 * passes),
    )


def _later(one: Numbers, other: Numbers) -> Numbers:
    """The later of two that go on at once, with a soft corner."""
    return (one**8 + other**8) ** 0.125


def _head_s(c: Columns, k: Curves) -> Numbers:
    """Logits, loss and their gradients for one microbatch."""
    tokens = rank_tokens(c)
    own = c.vocab / c.tensor
    loss = _LOSS_BYTES * tokens * own / (c.hbm * k.memory)
    return 3 * _product_s(c, k, tokens, c.hidden, own) + loss


def _stages(c: Columns, layer_s: Numbers, head_s: Numbers) -> tuple[Numbers, Numbers, Numbers]:
    """Seconds of a microbatch on the worker that has most to do and on all of them together, and
    the layers of that worker."""
    all_s = c.layers * layer_s + head_s
    even = np.ceil(c.layers / c.pipeline)
    # The last worker takes as many layers as leave it no more to do than others; those the rest.
    last = np.clip(np.floor((all_s / c.pipeline - head_s) / layer_s + 0.5), 1.0, even)
    others = np.ceil((c.layers - last) / np.maximum(1.0, c.pipeline - 1))
    balanced = np.maximum(others * layer_s, last * layer_s + head_s)
    worst = np.where(c.balanced > 0, balanced, even * layer_s + head_s)
    worst = np.where(c.pipeline > 1, worst, all_s)
    held = np.where((c.balanced > 0) & (c.pipeline > 1), others, even)
    return worst, np.maximum(all_s, worst), held


def _link(c: Columns, k: Curves, span: Numbers) -> Numbers:
    """Bytes a second of one rank in a group that reaches over `span` neighbouring ranks."""
    return np.where(
        span <= c.node, c.nvlink * k.nvlink, np.minimum(c.nic * k.nic, c.nvlink * k.nvlink)
    )


def _within_layers_s(c: Columns, k: Curves, core_s: Numbers) -> Numbers:
    """What one layer sends for one microbatch, and nothing hides."""
    tokens = rank_tokens(c)
    hidden_bytes = c.element_bytes * tokens * c.hidden
    calls = 4 + 2 * (c.recompute >= 2)
    ring = 2 * (c.tensor - 1) / c.tensor * hidden_bytes / _link(c, k, c.tensor) + 2 * k.near_s
    seen = np.where(c.hides_tensor > 0, k.tensor_exposed, 1.0)
    tensor = np.where(c.tensor > 1, calls * seen * ring, 0.0)
    return tensor + _context_s(c, k, core_s) + _experts_s(c, k)


def _context_s(c: Columns, k: Curves, core_s: Numbers) -> Numbers:
    tokens, span = rank_tokens(c), c.tensor * c.context
    link = _link(c, k, span)
    pair = 2 * c.element_bytes * tokens * c.key / c.tensor
    ring = 3 * (c.context - 1) * pair / link
    ring = _not_hidden(ring, core_s, k.overlap)
    # Each turn is launched, waited for, and its part merged into the result in float32.
    merged = 40 * tokens * c.query / c.tensor / (c.hbm * k.memory)
    turn = 3 * (2 * k.launch_s + k.near_s) + merged
    ring = ring + (c.context - 1) * turn
    exchanged = c.element_bytes * tokens * (2 * c.query + 2 * c.key) / c.tensor
    heads = 2 * (c.context - 1) / c.context * exchanged / link
    heads = heads + 8 * (k.near_s + k.launch_s + k.far_s * np.maximum(0.0, c.context - 1))
    return np.where(c.context > 1, np.where(c.ulysses > 0, heads, ring), 0.0)


def _experts_s(c: Columns, k: Curves) -> Numbers:
    """Tokens go to their experts and back, forward and backward: to each rank and, between nodes,
    to each node once."""
    shared = np.where(c.sequence > 0, c.tensor / c.expert_tensor, 1.0)
    sent = c.element_bytes * rank_tokens(c) / shared * c.hidden
    chosen, span = np.maximum(1.0, c.experts_per_token), c.expert * c.expert_tensor
    nodes = np.maximum(1.0, span / c.node)
    far = (nodes - 1) / nodes * _distinct(nodes, chosen) / (c.nic * k.nic)
    near = (c.expert - 1) / c.expert * _distinct(c.expert, chosen) / (c.nvlink * k.nvlink)
    once = sent * (far + near) + k.near_s
    return np.where(c.expert > 1, 4 * k.expert_exposed * once, 0.0)


def _distinct(places: Numbers, draws: Numbers) -> Numbers:
    """How many of `places` are met in so many draws, on average."""
    return places * (1 - (1 - 1 / places) ** draws)


def _not_hidden(sending: Numbers, computing: Numbers, overlap: float) -> Numbers:
    """What is left of sending beside computing: none where it is far less, all but the computing
    where it is far more."""
    together = (sending**overlap + computing**overlap) ** (1 / overlap)
    return np.maximum(0.0, together - computing)


def _between_stages_s(c: Columns, k: Curves) -> Numbers:
    """Activations forward and their gradients backward, at each cut that a worker has."""
    sent = c.element_bytes * rank_tokens(c) * c.hidden / c.tensor
    once = sent / _link(c, k, 1 + c.data * c.context * c.tensor) + k.near_s
    rounds = c.microbatches + c.pipeline - 1
    return np.where(c.pipeline > 1, 2 * k.pipeline_exposed * c.chunks * rounds * once, 0.0)


def _data_s(c: Columns, k: Curves, layer: _Layer, stage_s: Numbers) -> Numbers:
    """What the data axis gathers and sums, and nothing hides."""
    dense, experts, table = rank_weights(c)
    ranks = c.data * c.context
    weights = dense + table
    shard = np.minimum(ranks, np.maximum(1.0, c.shard))
    once = _ring_s(c, k, weights, shard) + _ring_s(c, k, experts, np.maximum(1, shard / c.expert))
    held = np.ceil(c.layers / c.pipeline)
    messages = np.where(shard > 1, held * _latency_s(c, k, shard), 0.0)
    copies = ranks / shard
    across = 2 * _ring_s(c, k, (weights + experts) / shard, copies, apart=shard) * c.gradient_bytes
    gathered, summed = c.weight_bytes * once + messages, c.gradient_bytes * once + messages
    backward = layer.backward / (layer.forward + layer.backward) * stage_s
    each = np.where(c.zero >= 3, 2.0, 1.0) * gathered + summed
    seen = np.where(c.sharing > 1, each, _not_hidden(each, stage_s, k.overlap))
    layered = c.microbatches * seen
    whole = np.where(c.zero >= 1, gathered + c.sums_whole * summed, summed) + summed + across
    hidden = _not_hidden(whole, backward, k.overlap)
    return np.where(
        c.gathers_layers > 0,
        layered + _not_hidden(across, backward, k.overlap),
        # Who shares cores sends with the same ones that would compute meanwhile.
        np.where((c.hides_data > 0) & (c.sharing <= 1), hidden, whole),
    )


def _latency_s(c: Columns, k: Curves, ranks: Numbers) -> Numbers:
    nodes = np.maximum(1.0, ranks * c.tensor / c.node)
    return k.near_s + k.far_s * (nodes - 1)


def _ring_s(
    c: Columns, k: Curves, weights: Numbers, ranks: Numbers, apart: Numbers | float = 1.0
) -> Numbers:
    """Seconds a byte of each weight takes to be gathered from, or summed over, `ranks` that stand
    `apart` from one another. Ranks of one node share out their NICs."""
    beside = np.clip(c.node / (c.tensor * apart), 1.0, ranks)
    shared = np.where(c.one_link > 0, 1.0, beside)
    near = c.nvlink * k.nvlink
    link = np.where(ranks <= beside, near, np.minimum(near, c.nic * k.nic * shared))
    seconds: Numbers = (ranks - 1) / ranks * weights / link
    return seconds


def _optimizer_s(c: Columns, k: Curves) -> Numbers:
    dense, experts, table = rank_weights(c)
    ranks = np.where(c.zero >= 1, np.maximum(1.0, c.shard), 1.0)
    own = (dense + table) / ranks + experts / np.maximum(1.0, ranks / c.expert)
    moved = c.offload * 16 * own / _PCIE_BYTES_PER_S
    seconds: Numbers = c.sharing * _ADAM_BYTES * own / (c.hbm * k.memory) + moved
    return k.step_s + seconds

"""Bytes that the worker which needs most holds at its peak, for whole columns of plans.

What frameworks keep differs, and is a column (`Habits`): states follow ZeRO (Rajbhandari et al.
2020, section 3), activations Korthikanti et al. 2022 (equations 1 to 6). `rayline.planner.memory`
counts rayline's own workers exactly, one plan at a time; here thousands are counted at once, and
others' runs, which measure what their allocator held: it gives back nothing, so that what a step's
parts need at different times adds up.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from rayline.planner.columns import Columns, Numbers
from rayline.planner.curves import Curves
from rayline.planner.step_time import rank_tokens, rank_weights

GIB = 2.0**30
SEGMENTS = 0.25
"""What an allocator with expandable segments (PyTorch since 2.1) leaves of those fragments: steps
of one shape fill the same blocks again. Not fitted: no published run with it tells its memory."""


@dataclass(frozen=True, slots=True)
class StageMemory:
    """Bytes by what they hold; one entry a run."""

    weights: Numbers
    gradients: Numbers
    optimizer: Numbers
    activations: Numbers
    logits: Numbers
    buffers: Numbers
    """Context, communication, fragments, and copies while the optimizer steps."""

    @property
    def total(self) -> Numbers:
        """All of it."""
        parts = [getattr(self, field.name) for field in fields(self)]
        total: Numbers = np.sum(parts, axis=0)
        return total


def predict_memory(c: Columns, curves: Curves) -> StageMemory:
    """The first worker of a pipeline holds most microbatches, the last one the logits: the one
    that needs more of the two counts."""
    dense, experts, table = rank_weights(c)
    held = dense + experts + table
    shard = np.where(c.zero >= 1, np.maximum(1.0, c.shard), 1.0)
    own = (dense + table) / shard + experts / np.maximum(1.0, shard / c.expert)
    near = np.minimum(held, 2 * (dense + experts) / np.ceil(c.layers / c.pipeline) + table)
    gathers = (c.gathers_layers > 0) & (c.zero >= 3)
    weights = c.copy_bytes * np.where(gathers, near, held)
    weights = weights + np.where(c.zero >= 3, c.copy_bytes * own * (c.master_bytes == 0), 0.0)
    shares = (c.zero >= 2) & ((c.pipeline == 1) | (c.holds_gradients == 0))
    gradients = np.where(shares, c.gradient_own * own + c.copy_bytes * near, 0.0)
    gradients = np.where(shares, gradients, c.gradient_held * held + c.gradient_own * own)
    activations, logits = _first_or_last(c)
    fragments = curves.fragments * np.where(c.recent > 0, SEGMENTS, 1.0) * (activations + logits)
    steps = c.step_bytes * own
    return StageMemory(
        weights=weights + c.master_bytes * own,
        gradients=gradients,
        optimizer=c.state_bytes * own * (1 - c.offload),
        activations=activations,
        logits=logits,
        buffers=curves.base_gib(c.curve) * GIB + fragments + steps,
    )


def _first_or_last(c: Columns) -> tuple[Numbers, Numbers]:
    """Activations and logits of whichever worker needs more of both."""
    tokens = rank_tokens(c)
    per_stage = np.ceil(c.layers / c.pipeline)
    kept, whole = _layer_bytes(c)
    ahead = np.where(c.gpipe > 0, c.microbatches, np.minimum(c.microbatches, c.pipeline))
    more = np.where(c.chunks > 1, 1 + (c.pipeline - 1) / (c.pipeline * c.chunks), 1.0)
    again = np.where((c.recompute >= 2) | (c.reuse > 0), whole, 0.0)
    one = tokens * per_stage * kept
    most = np.minimum(c.microbatches, ahead * more)
    first = np.where(c.pipeline > 1, most, 1.0) * one + tokens * again
    last = np.where(c.gpipe > 0, c.microbatches, 1.0) * one + tokens * again
    split = np.where(c.chunks > 1, more * ahead / np.maximum(1.0, c.chunks), 1.0)
    last = np.where(c.chunks > 1, np.maximum(last, split * one + tokens * again), last)
    # While the head computes, no layer is computed again.
    logits = c.logit_bytes * tokens * c.vocab / c.tensor
    ends = np.maximum(last, last - tokens * again + logits)
    first_more = (first > ends) & (c.pipeline > 1)
    alone = np.where(
        first_more, first, np.where(logits > tokens * again, last - tokens * again, last)
    )
    return alone, np.where(first_more | (logits <= tokens * again), 0.0, logits)


def _layer_bytes(c: Columns) -> tuple[Numbers, Numbers]:
    """What one layer keeps of each token until its backward pass, and what it holds of it while it
    is computed."""
    size = c.element_bytes
    whole = np.where(c.sequence > 0, c.tensor, 1.0)
    outside = c.hidden * (size * (4 + c.norm_extra) + 2 * c.dropout) / whole
    products = size * (2 * c.query + 2 * c.key + c.ffn_saved * c.ffn) / c.tensor
    scores = c.heads / c.tensor * np.where(c.flash > 0, 4.0, (2 * size + c.dropout) * c.tokens)
    all_bytes = outside + products + scores
    source = size * c.hidden / whole
    core = np.where(c.recompute > 0, outside + products, all_bytes)
    # Without what is computed again: inputs and results of products, and of the attention.
    matrices = 3 * source + size * (2 * c.query + 2 * c.key + 2 * c.ffn) / c.tensor
    kept = np.where(c.recompute >= 2, source, np.where(c.reuse > 0, matrices, core))
    return kept, all_bytes

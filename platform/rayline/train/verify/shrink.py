"""A model's config and its job made small enough for a laptop, with the plan's questions kept.

What decides whether a plan computes rightly is structure: heads and key-value heads, experts, the
kinds of layers, tied embeddings, and whether a size comes out even when it is cut. These stay. What
only costs time goes: layers, widths, vocabulary, sequence length, batch. Functions of plain values:
no torch, no files.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd
from typing import Any

from rayline.spec import (
    BatchSpec,
    JobSpec,
    ModelShape,
    ParallelPlan,
    PlateauSchedule,
    RampSpec,
)

Config = dict[str, Any]

SEQUENCE_TOKENS = 64
"""Room for a made-up chat in bytes; a multiple of every small axis."""
VOCAB = 264
"""256 bytes, three special tokens, rounded up: what the byte tokenizer of rayline.models.tiny asks
for."""
WARMUP_STEPS = 4
"""The rate still rises where the job is stopped and resumed, so that a shifted schedule shows."""
LEAST_LR = 1e-3
"""Smaller steps vanish in float32's rounding; weights drawn at random have no rate of their own."""
MOST_RANKS = 8
_HEAD_DIM = 8
_FFN = 48
_WINDOW_TOKENS = 16
_WINDOW_STEPS = 2
_CHUNK_TOKENS = 24
_INITIALIZER_RANGE = 0.1
"""At the usual 0.02 a narrow model attends almost evenly, and queries and keys get no gradient."""
_LORA_RANK = 16
_FFN_KEYS = (
    "intermediate_size",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
    "n_inner",
    "ffn_dim",
)
_LATENT_DIMS = ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
_LATENT_RANKS = ("q_lora_rank", "kv_lora_rank")
_WINDOW_KEYS = ("sliding_window", "attention_chunk_size")
_ROTARY_LISTS = ("short_factor", "long_factor", "mrope_section")


@dataclass(frozen=True, slots=True)
class Shrunk:
    """A job and its model's config as they are verified."""

    job: JobSpec
    config: Config
    """What config.json holds."""
    changes: tuple[str, ...]
    """What was changed, a line each, such as `num_hidden_layers 32 -> 2`."""


def shrink(job: JobSpec, config: Mapping[str, Any]) -> Shrunk:
    """The small job and config. Called by the driver, after `job.check` has accepted the whole.
    Raises SpecError where config lacks a size."""
    smaller = _shrink_job(job)
    small = copy.deepcopy(dict(config))
    text = small.get("text_config") or small
    shape = ModelShape.from_config(config)
    _shrink_layers(text, shape.layers, smaller.plan.stages)
    _shrink_widths(text, shape, smaller.plan)
    _shrink_words(text, smaller.plan)
    _silence(text)
    before, after = config.get("text_config") or config, text
    changes = [*_difference(before, after), *_difference(job.flat(), smaller.flat())]
    files = sum(len(source.files) for source in job.data.sources)
    data = f"data {job.data.kind} from {files} files -> made-up chats, in bytes"
    return Shrunk(smaller, small, (*changes, data, "weights -> drawn at random"))


def as_it_is(job: JobSpec, config: Mapping[str, Any]) -> Shrunk:
    """The whole job and config, without what is drawn at random in training: a dropped value would
    differ from rank to rank, rightly."""
    same = copy.deepcopy(dict(config))
    _silence(same.get("text_config") or same)
    return Shrunk(job, same, tuple(_difference(config, same)))


def shrink_plan(plan: ParallelPlan) -> ParallelPlan:
    """A plan of MOST_RANKS or fewer, each of its axes still above one where it was: the largest is
    divided by its smallest factor until all fit. The data axis keeps room for `expert`, which
    shrinks once nothing else can, and stages are balanced anew."""
    while plan.world_size > MOST_RANKS:
        smaller = {
            axis: size
            for axis in ("data", "pipeline", "context", "tensor")
            if 1 < (size := _smaller_axis(plan, axis)) < getattr(plan, axis)
        }
        if smaller:
            axis = max(smaller, key=lambda name: getattr(plan, name))
            plan = plan.changed({axis: smaller[axis]})
        elif _smaller(plan.expert) > 1 and plan.expert % _smaller(plan.expert) == 0:
            plan = plan.changed({"expert": _smaller(plan.expert)})
        else:
            break
    copies = gcd(plan.replicate, plan.data // plan.expert)
    return plan.changed({"replicate": copies, "layers_per_stage": None})


def _smaller_axis(plan: ParallelPlan, axis: str) -> int:
    """The next smaller size of an axis; of the data axis one that holds whole sets of experts."""
    if axis == "data":
        return plan.expert * _smaller(plan.data // plan.expert)
    return _smaller(getattr(plan, axis))


def _smaller(size: int) -> int:
    """`size` without its smallest factor; a prime other than 2 becomes 2."""
    factor = next((n for n in range(2, size) if size % n == 0), None)
    return size // factor if factor else min(size, 2) if size > 2 else 1


def narrowed(size: int, near: int, unit: int) -> int:
    """The smallest number from `near` on that leaves the remainder of `size` when cut into `unit`
    parts; never above `size`."""
    return min(size, near + (size - near) % unit)


def _shrink_job(job: JobSpec) -> JobSpec:
    plan = shrink_plan(job.plan)
    per_microbatch = min(2, job.sequences_per_microbatch)
    parts = plan.sequence_divisor
    rows = plan.data * plan.microbatches
    return job.changed(
        {
            "plan": plan.model_dump(mode="json"),
            "batch": _small_batch(job, rows, per_microbatch).model_dump(mode="json"),
            "data.sequence_tokens": -(-SEQUENCE_TOKENS // parts) * parts,
            "optim.warmup_steps": WARMUP_STEPS,
            "optim.lr": max(job.optim.lr, LEAST_LR),
            **_sooner(job),
        }
    )


def _small_batch(job: JobSpec, rows: int, per_microbatch: int) -> BatchSpec:
    """A batch of few sequences; one that grows does so twice within the steps."""
    if job.batch.ramp is None:
        return BatchSpec(sequences=rows * per_microbatch)
    ramp = RampSpec(start=rows, increment=rows, steps=WARMUP_STEPS)
    return BatchSpec(sequences=3 * rows, ramp=ramp)


def _sooner(job: JobSpec) -> dict[str, object]:
    """What waits for many steps or tokens waits for few, so that it happens at all."""
    found: dict[str, object] = {}
    if isinstance(job.optim.schedule, PlateauSchedule):
        found["optim.schedule.patience_steps"] = 0
    if job.guard.spike_factor is not None:
        found["guard.window_steps"] = min(job.guard.window_steps, _WINDOW_STEPS)
        # A model drawn at random may leap where the user's own does not.
        found["guard.on_spike"] = "skip"
    if job.objective.chunk_tokens is not None:
        found["objective.chunk_tokens"] = min(job.objective.chunk_tokens, _CHUNK_TOKENS)
    return found


def _shrink_layers(text: Config, layers: int, stages: int) -> None:
    """One layer a stage, an uneven rest kept, and as many of the first ones as show every kind."""
    per_layer = [key for key, value in text.items() if _is_list_of(value, layers)]
    kinds = [next(n for n in range(1, layers + 1) if _shows_all(text[key], n)) for key in per_layer]
    dense = text.get("first_k_dense_replace") or 0
    count = min(layers, max(stages + layers % stages, 2, *kinds, 2 if dense else 1))
    for key in ("num_hidden_layers", "n_layer"):
        if key in text:
            text[key] = count
    for key in per_layer:
        text[key] = text[key][:count]
    for key in ("first_k_dense_replace", "max_window_layers"):
        if text.get(key):
            text[key] = count if text[key] >= layers else min(text[key], count - 1)
    for key in ("mlp_only_layers", "mlp_layers", "moe_layers"):
        if isinstance(text.get(key), list) and key not in per_layer:
            text[key] = [number for number in text[key] if number < count]


def _is_list_of(value: object, length: int) -> bool:
    return isinstance(value, list) and len(value) == length > 1


def _shows_all(values: list[Any], count: int) -> bool:
    shown = values[:count]
    return all(value in shown for value in values)


def _shrink_widths(text: Config, shape: ModelShape, plan: ParallelPlan) -> None:
    head_dim = _head_dim(text, shape.head_dim)
    latent = "qk_rope_head_dim" in text
    per_head = shape.hidden / shape.head_dim
    if text.get("head_dim") is None or latent:
        per_head = shape.heads
    hidden = min(shape.hidden, max(16, round(per_head * head_dim / 8) * 8))
    for key in ("hidden_size", "n_embd"):
        if key in text:
            text[key] = hidden
    if text.get("head_dim") is not None:
        text["head_dim"] = head_dim
    for key in _LATENT_DIMS if latent else ():
        text[key] = min(text[key], head_dim)
    if latent and text.get("qk_head_dim") is not None:
        text["qk_head_dim"] = text["qk_nope_head_dim"] + text["qk_rope_head_dim"]
    for key in _LATENT_RANKS:
        if text.get(key):
            text[key] = min(text[key], _LORA_RANK)
    for key in _FFN_KEYS:
        if text.get(key):
            text[key] = narrowed(text[key], _FFN, plan.tensor * plan.data)


def _head_dim(text: Config, size: int) -> int:
    """The smallest width of a head, of 8 doubled, whose turned part is even; the own one where
    lists say how each of its places turns."""
    rotary = {**(text.get("rope_scaling") or {}), **(text.get("rope_parameters") or {})}
    if any(key in rotary for key in _ROTARY_LISTS):
        return size
    turned = text.get("partial_rotary_factor") or rotary.get("partial_rotary_factor") or 1.0
    width = _HEAD_DIM
    while width < size and (int(width * turned) < 2 or int(width * turned) % 2):
        width *= 2
    return min(size, width)


def _shrink_words(text: Config, plan: ParallelPlan) -> None:
    text["vocab_size"] = VOCAB + (text["vocab_size"] - VOCAB) % plan.tensor
    special = {"bos_token_id": 256, "pad_token_id": 256, "eos_token_id": 258}
    for key, token in special.items():
        if text.get(key) is not None:
            text[key] = token
    for key in _WINDOW_KEYS:
        if isinstance(text.get(key), int):
            text[key] = min(text[key], _WINDOW_TOKENS)
    if "initializer_range" in text:
        text["initializer_range"] = _INITIALIZER_RANGE


def _silence(text: Config) -> None:
    """Nothing may be drawn at random in a step."""
    for key, value in text.items():
        random = "dropout" in key or key.endswith(("_pdrop", "jitter_noise"))
        if random and isinstance(value, float) and value:
            text[key] = 0.0


def _difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    return [
        f"{key} {_short(before[key])} -> {_short(after[key])}"
        for key in before
        if before[key] != after[key]
    ]


def _short(value: object) -> str:
    return f"{len(value)} entries" if isinstance(value, list) else f"{value}"
